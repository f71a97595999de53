//! Small tests: no sockets, no servers, no processes but `git ls-files`.

#[path = "../support/left_out.rs"]
mod left_out;

mod action;
mod clock;
mod config;
mod corpus;
mod course;
mod damage;
mod differential;
mod disk;
mod disk_model;
mod docs;
mod effort;
mod faulty;
mod folder;
mod formats;
mod formats_random;
mod journal;
mod junk;
mod line;
mod losses;
mod properties;
mod stream;
mod tickets;
mod tidy;
