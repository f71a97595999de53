//! Simulated hosts and misbehaving InfluxDB servers, with a ledger that finds every lost, duplicated or altered line.
//!
//! [`workload`] makes the hosts' lines, [`mod@line`] marks and knows them again, [`mod@send`] sends them, [`sink`]
//! takes them where an InfluxDB would, [`ledger`] tells what arrived, and [`mod@run`] puts it all together around a
//! [`relay`], [`outage`] around one that is killed. [`baseline`] is what any receiver costs at the least.

pub mod baseline;
pub mod ledger;
pub mod line;
pub mod outage;
pub mod relay;
pub mod run;
pub mod send;
pub mod sink;
pub mod workload;
