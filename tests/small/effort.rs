//! How much the tests of chance and of every byte try: a part of it each time, everything once before a change goes in.
//!
//! `TWINFLUX_TESTS=exhaustive` (as `tests/run exhaustive` sets it) is everything.

/// Whether everything is to be tried.
pub(crate) fn is_exhaustive() -> bool {
    std::env::var("TWINFLUX_TESTS").is_ok_and(|wanted| wanted == "exhaustive")
}

/// Cases to try, of so many: a tenth, or all.
pub(crate) fn cases(all: u32) -> u32 {
    if is_exhaustive() { all } else { all.div_ceil(10) }
}
