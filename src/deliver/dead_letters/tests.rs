//! Tests of the equation over random sequences of operations, restarts and torn files, and of
//! reading letters back.

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::journal::Rejection;
use crate::protocol::Precision;

fn destination() -> Destination {
    Destination::new("db", "rp", Precision::Seconds)
}

fn refused(line: &str, class: Rejection, answer: &Arc<str>) -> Refused {
    Refused { line: Bytes::copy_from_slice(line.as_bytes()), class, status: Some(400), answer: Arc::clone(answer) }
}

fn all(folder: &Path, filter: &Filter) -> Vec<Letter> {
    let mut letters = Vec::new();
    each(folder, filter, |letter| letters.push(letter)).expect("read");
    letters
}

#[test]
fn what_was_refused_is_read_back_as_it_was() {
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path().join("letters");
    let letters = DeadLetters::open(&folder, 1 << 20).expect("open");
    assert!(all(&folder, &Filter::default()).is_empty() && !folder.exists());
    let (one, other): (Arc<str>, Arc<str>) = ("no".into(), "never \u{1b}".into());
    let lines = [
        refused("m s=\"two\nlines\" 1", Rejection::FieldType, &one),
        refused("m v=2i 2", Rejection::FieldType, &one),
        refused("m v=3i 3", Rejection::Poison, &other),
    ];
    letters.keep("a", &destination(), &lines).expect("kept");
    letters.keep("b", &destination(), &lines[..1]).expect("kept");
    let read = all(&folder, &Filter::default());
    let seen: Vec<_> = read
        .iter()
        .map(|letter| {
            (letter.id, letter.backend.as_str(), letter.class.as_str(), letter.line.as_str(), letter.answer.as_str())
        })
        .collect();
    assert_eq!(
        seen,
        [
            (1, "a", "field_type", "m s=\"two\nlines\" 1", "no"),
            (2, "a", "field_type", "m v=2i 2", "no"),
            (3, "a", "poison", "m v=3i 3", "never \u{1b}"),
            (4, "b", "field_type", "m s=\"two\nlines\" 1", "no"),
        ]
    );
    assert_eq!(
        (read[0].database.as_str(), read[0].retention_policy.as_str(), read[0].precision.as_str()),
        ("db", "rp", "s")
    );
    let of = |filter: Filter| all(&folder, &filter).into_iter().map(|letter| letter.id).collect::<Vec<_>>();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(of(Filter { backend: text("b"), ..Filter::default() }), [4]);
    assert_eq!(of(Filter { class: text("field_type"), ..Filter::default() }), [1, 2, 4]);
    assert_eq!(of(Filter { ids: [3, 9].into(), ..Filter::default() }), [3]);
    assert_eq!(of(Filter { database: text("other"), ..Filter::default() }), [0_u64; 0]);
    let soon = SystemTime::now() + Duration::from_secs(10);
    assert!(of(Filter { since: Some(soon), ..Filter::default() }).is_empty());
}

#[test]
fn the_equation_holds_over_any_course_and_restarts() {
    fastrand::seed(11);
    for round in 0..9 {
        let folder = tempfile::tempdir().expect("folder");
        let max_bytes = [2_000, 20_000, 1 << 20][round % 3];
        let mut letters = DeadLetters::open(folder.path(), max_bytes).expect("open");
        let mut written = [0_u64; 2];
        for _ in 0..100 {
            match fastrand::u8(..20) {
                0 => {
                    letters = DeadLetters::open(folder.path(), max_bytes).expect("open again");
                    written = [0; 2];
                }
                1..=3 => {
                    let backend = fastrand::bool().then(|| "a".to_owned());
                    let kept: Vec<u64> =
                        all(folder.path(), &Filter::default()).iter().map(|letter| letter.id).collect();
                    let ids: HashSet<u64> = kept.into_iter().filter(|_| fastrand::u8(..4) == 0).chain([0]).collect();
                    let why = if fastrand::bool() { Why::Resent } else { Why::Discarded };
                    letters.remove(&Filter { ids, backend, ..Filter::default() }, why).expect("removed");
                }
                _ => {
                    let index = fastrand::usize(..2);
                    let answer: Arc<str> = "x".repeat(fastrand::usize(..200)).into();
                    let lines: Vec<Refused> = (0..fastrand::usize(1..9))
                        .map(|n| refused(&format!("m v={n} 1"), Rejection::Other, &answer))
                        .collect();
                    letters.keep(["a", "b"][index], &destination(), &lines).expect("kept");
                    written[index] += lines.len() as u64;
                }
            }
            let read = all(folder.path(), &Filter::default());
            for (index, name) in ["a", "b"].into_iter().enumerate() {
                let Figures { found, kept, resent, discarded, evicted, bytes } = letters.figures(name);
                assert_eq!(found + written[index], kept + resent + discarded + evicted);
                let there: Vec<_> = read.iter().filter(|letter| letter.backend == name).collect();
                assert_eq!(kept, there.len() as u64, "as many as are there");
                assert_eq!(bytes, there.iter().map(|letter| letter.line.len() as u64).sum::<u64>());
            }
            let size: u64 = std::fs::read_dir(folder.path())
                .expect("folder")
                .map(|entry| entry.expect("entry").metadata().expect("metadata").len())
                .sum();
            assert!(size <= max_bytes + max_bytes / FILES + 4_000, "{size} of {max_bytes}");
            let mut ids: Vec<u64> = read.iter().map(|letter| letter.id).collect();
            ids.dedup();
            assert!(ids.is_sorted() && ids.len() == read.len(), "no number is given twice");
        }
    }
}

#[test]
fn what_a_crash_tore_costs_itself_only() {
    let whole = tempfile::tempdir().expect("folder");
    let letters = DeadLetters::open(whole.path(), 1 << 20).expect("open");
    let answer: Arc<str> = "no".into();
    for line in 0..5 {
        letters
            .keep("a", &destination(), &[refused(&format!("m v={line} 1"), Rejection::Other, &answer)])
            .expect("kept");
    }
    let path = paths(whole.path()).expect("paths").remove(0);
    let bytes = std::fs::read(&path).expect("read");
    for end in 0..bytes.len() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(path.file_name().expect("a name")), &bytes[..end]).expect("write");
        let letters = DeadLetters::open(folder.path(), 1 << 20).expect("open");
        let found = letters.figures("a").found;
        letters.keep("a", &destination(), &[refused("m v=9 9", Rejection::Other, &answer)]).expect("kept");
        let read = all(folder.path(), &Filter::default());
        assert_eq!(read.len() as u64, found + 1, "cut at {end}");
        assert_eq!(read.last().map(|letter| letter.line.as_str()), Some("m v=9 9"), "cut at {end}");
        assert_eq!(DeadLetters::open(folder.path(), 1 << 20).expect("open").figures("a").found, found + 1);
    }
    assert_eq!(letters.figures("a").kept, 5);
}

#[test]
fn what_cannot_be_written_counts_as_evicted_and_is_an_error() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("in the way");
    std::fs::write(&path, "").expect("write");
    // The path runs through a file, so no folder can be created there.
    let letters = DeadLetters::open(&path.join("letters"), 1 << 20);
    let letters = letters.unwrap_or_else(|_| DeadLetters {
        folder: path.join("letters"),
        max_bytes: 1 << 20,
        state: Mutex::default(),
    });
    let answer: Arc<str> = "no".into();
    let lines = [refused("m v=1 1", Rejection::Other, &answer), refused("m v=2 1", Rejection::Poison, &answer)];
    letters.keep("a", &destination(), &lines).expect_err("there is no folder");
    assert_eq!(letters.figures("a"), Figures { evicted: 2, ..Figures::default() });
}

#[test]
fn what_is_no_file_of_letters_is_told_and_left_alone() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("notes.txt"), "mine").expect("write");
    DeadLetters::open(folder.path(), 1 << 20).expect("other files do not matter");
    let path = folder.path().join("00000000000000000001-000000.letters");
    std::fs::write(&path, "something else entirely, and long enough").expect("write");
    let letters = DeadLetters::open(folder.path(), 1 << 20).expect("it is left alone");
    let answer: Arc<str> = "no".into();
    letters.keep("a", &destination(), &[refused("m v=1 1", Rejection::Other, &answer)]).expect("kept beside it");
    assert_eq!(all(folder.path(), &Filter::default()).len(), 1);
    assert_eq!(DeadLetters::open(folder.path(), 1 << 20).expect("open").figures("a").found, 1);
    assert_eq!(std::fs::read(&path).expect("read"), b"something else entirely, and long enough");
}
