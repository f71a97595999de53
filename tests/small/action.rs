//! What can be done to a journal on a disk, and any of it.

use proptest::prelude::*;

use crate::course::BACKENDS;

#[derive(Clone, Debug)]
pub(crate) enum Action {
    Append {
        database: usize,
        lines: u64,
        filler: usize,
    },
    Lease {
        backend: usize,
    },
    Settle {
        backend: usize,
        which: usize,
    },
    /// The backend refuses some of a lease's lines, or claims to have refused more than there are.
    Reject {
        backend: usize,
        which: usize,
        lines: u64,
    },
    GiveBack {
        backend: usize,
        which: usize,
    },
    Write,
    Sync,
    /// The syncer comes before the writer: what was acked meanwhile is not saved.
    SyncAlone,
    /// The process ends, and what it had written is still there.
    Kill,
    /// The process ends within the next operations, before or after one of them.
    KillWithin {
        operations: u64,
    },
    /// The machine ends, and of what was not synced some sectors and files are there.
    CutPower {
        seed: u64,
    },
    /// The process ends as it should.
    Stop,
    FailWrites {
        times: u32,
    },
    FailSyncs {
        times: u32,
    },
    FailReads {
        times: u32,
    },
    Fill,
    Heal,
    /// A bit of a segment turns.
    Corrupt {
        which: usize,
    },
    /// A statement comes that changes a database.
    SetBarrier {
        database: usize,
    },
    /// It is run on a backend that has what came before it.
    PassBarrier {
        backend: usize,
    },
    /// Somebody removes the folder, and the relay looks for it.
    RemoveFolder,
    /// Somebody removes the last segment's file, and the relay looks for it.
    RemoveLast,
}

pub(crate) fn action() -> impl Strategy<Value = Action> {
    let backend = 0..BACKENDS;
    let which = any::<usize>();
    prop_oneof![
        12 => (0..2_usize, 1..5_u64, prop_oneof![0..100_usize, 3000..6000_usize])
            .prop_map(|(database, lines, filler)| Action::Append { database, lines, filler }),
        8 => backend.clone().prop_map(|backend| Action::Lease { backend }),
        7 => (backend.clone(), which).prop_map(|(backend, which)| Action::Settle { backend, which }),
        1 => (backend.clone(), which, 0..20_u64)
            .prop_map(|(backend, which, lines)| Action::Reject { backend, which, lines }),
        2 => (backend.clone(), which).prop_map(|(backend, which)| Action::GiveBack { backend, which }),
        1 => (0..2_usize).prop_map(|database| Action::SetBarrier { database }),
        2 => backend.prop_map(|backend| Action::PassBarrier { backend }),
        6 => Just(Action::Write),
        3 => Just(Action::Sync),
        1 => Just(Action::SyncAlone),
        1 => Just(Action::Kill),
        1 => (0..8_u64).prop_map(|operations| Action::KillWithin { operations }),
        1 => any::<u64>().prop_map(|seed| Action::CutPower { seed }),
        1 => Just(Action::Stop),
        1 => (1..3_u32).prop_map(|times| Action::FailWrites { times }),
        1 => (1..3_u32).prop_map(|times| Action::FailSyncs { times }),
        1 => (1..3_u32).prop_map(|times| Action::FailReads { times }),
        1 => Just(Action::Fill),
        1 => any::<usize>().prop_map(|which| Action::Corrupt { which }),
        2 => Just(Action::Heal),
    ]
}

/// Any action, and among them some that remove what the relay works on.
pub(crate) fn action_with_removals() -> impl Strategy<Value = Action> {
    prop_oneof![30 => action(), 1 => Just(Action::RemoveFolder), 1 => Just(Action::RemoveLast)]
}
