//! Simulated hosts and misbehaving InfluxDB servers, with a ledger that finds every lost,
//! duplicated or altered line.
//!
//! [`workload`] makes the lines of hosts that run Telegraf, [`mod@line`] marks and knows them
//! again, [`mod@send`] sends them by UDP, [`http`] by HTTP; [`netdata`] makes and knows those of
//! hosts that run Netdata, [`burst`] sends them. [`sink`] takes them where an InfluxDB would,
//! [`ledger`] tells what arrived, and [`mod@run`] puts it all together around a [`relay`],
//! [`outage`] around one that is killed, and [`strain`] around one that greedy hosts keep busy.
//! [`hostile`] clients may be beside all of them. [`baseline`] is what any receiver costs at the
//! least.

pub mod answers;
pub mod baseline;
pub mod batch;
pub mod burst;
pub mod hostile;
pub mod http;
pub mod ledger;
pub mod line;
pub mod netdata;
pub mod outage;
pub mod relay;
pub mod report;
pub mod run;
pub mod send;
pub mod sink;
pub mod strain;
pub mod workload;
