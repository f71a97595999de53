//! Large tests: real InfluxDB servers (Debian's `influxdb` 1.6.7), kills, the program under load.

#[path = "../small/effort.rs"]
#[allow(dead_code, reason = "small tests use more of it")]
mod effort;
#[path = "../support/pipes.rs"]
mod pipes;
#[path = "../support/mod.rs"]
mod support;

mod alerts;
mod balancer;
mod clients;
mod crash;
mod disk;
mod faults;
mod influxdb;
mod influxql;
mod listeners;
mod mirror;
mod network;
mod overload;
mod page;
mod pair;
mod readers;
mod reads;
mod refusals;
mod requests;
mod restore;
mod rig;
mod senders;
mod stored;
mod strain;
mod syntax;
mod victoria;
