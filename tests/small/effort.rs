//! How much the tests of chance, of every byte and of endurance try: a part of it each time,
//! everything once before a change goes in, and by the hundred now and then.
//!
//! `TWINFLUX_TESTS=exhaustive` (as `tests/run exhaustive` sets it) is everything,
//! `TWINFLUX_TESTS=soak` (`tests/run soak`) endurance.

/// Cases to try, of so many: a tenth, or all.
pub(crate) fn cases(all: u32) -> u32 {
    times(all.div_ceil(10), all, all)
}

/// How often something is repeated: usually, before a change goes in, and for endurance.
pub(crate) fn times<T>(usual: T, exhaustive: T, soak: T) -> T {
    match () {
        () if is("soak") => soak,
        () if is("exhaustive") => exhaustive,
        () => usual,
    }
}

fn is(level: &str) -> bool {
    std::env::var("TWINFLUX_TESTS").is_ok_and(|wanted| wanted == level)
}
