//! Simulated hosts and misbehaving InfluxDB servers, with a ledger that finds every lost, duplicated or altered line.
pub mod line;
pub mod workload;
