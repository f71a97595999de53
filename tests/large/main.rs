//! Large tests: real InfluxDB servers (Debian's `influxdb` 1.6.7), kills, the program under load.

#[path = "../support/pipes.rs"]
mod pipes;
#[path = "../support/mod.rs"]
mod support;

mod crash;
mod disk;
mod influxdb;
mod listeners;
mod mirror;
mod overload;
mod refusals;
mod restore;
mod senders;
mod stored;
mod strain;
mod syntax;
mod victoria;
