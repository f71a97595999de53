//! Medium tests: one relay on loopback, with backends in the same process.

#[path = "../support/captures.rs"]
mod captures;
#[path = "../support/certificates.rs"]
mod certificates;
#[path = "../support/pipes.rs"]
mod pipes;
#[path = "../support/mod.rs"]
mod support;

#[path = "../small/faulty.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod faulty;

mod access;
mod activation;
mod admin;
mod answers;
mod backends;
mod captured;
mod cases;
mod clock;
mod cut_answers;
mod cuts;
mod drain;
mod folder;
mod hostile;
mod http;
mod http_hostile;
mod http_statements;
mod http_users;
mod journal;
mod letters;
mod log;
mod moving;
mod multicast;
mod operator;
mod orders;
mod packages;
mod pair;
mod probing;
mod process;
mod program;
mod reaching;
mod reads;
mod receiving;
mod reload;
mod restore;
mod returning;
mod secrets;
mod signals;
mod stalls;
mod strain;
mod streams;
mod tcp;
mod tls;
mod tls_listeners;
mod units;
mod waiting;
