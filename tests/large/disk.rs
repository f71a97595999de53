//! A real full disk under the archive: a small tmpfs, which takes root.

use std::path::Path;
use std::process::Command;

use bytesize::ByteSize;

use crate::support::{Running, config, left_out, wait_for};

/// A mounted tmpfs that is unmounted at the end; none where this user may not mount.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("folder");
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).status();
        // Only what is mounted is unmounted.
        mounted.is_ok_and(|status| status.success()).then(|| Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("-l").arg(self.path()).status().expect("umount").success());
    }
}

#[test]
fn a_full_disk_under_the_archive_delays_lines_and_loses_none() {
    let Some(disk) = SmallDisk::mount("1m") else {
        left_out("a_full_disk_under_the_archive_delays_lines_and_loses_none", "this user may not mount");
        return;
    };
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![0; 700 << 10]).expect("ballast");
    let mut settings = config(&[format!("file://{}/archive", disk.path().display())]);
    settings.journal.min_free = Some(ByteSize::b(0));
    let relay = Running::start(settings);
    let lines: Vec<String> = (0..1000).map(|n| format!("m,host=h v=\"{}\" {n}\n", "x".repeat(500))).collect();
    relay.send(&lines);
    relay.wait_state("a", "retrying");
    let full = relay.backend("a");
    assert!(full.last_error.as_ref().is_some_and(|error| error.contains("No space left")));
    assert_eq!((full.dropped(), full.rejected()), (0, 0));
    std::fs::remove_file(ballast).expect("space again");
    relay.wait_delivered("a", 1000);
    let mut text = String::new();
    wait_for("the segment", || {
        let segment = std::fs::read_dir(disk.path().join("archive/telegraf.ns")).ok()?.next()?.ok()?;
        text = std::fs::read_to_string(segment.path()).ok()?;
        Some(())
    });
    // After the header every line, whole, once, in order.
    let stored: String = text.split_inclusive('\n').filter(|line| !line.starts_with('#')).collect();
    assert_eq!(stored, lines.concat());
}

#[test]
fn an_archive_without_bounds_stops_at_its_volumes_floor_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount("8m") else {
        let name = "an_archive_without_bounds_stops_at_its_volumes_floor_and_goes_on_when_there_is_room";
        left_out(name, "this user may not mount");
        return;
    };
    let floor = 3 << 20;
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![0; 4 << 20]).expect("ballast");
    let mut settings = config(&[format!("file://{}/archive", disk.path().display())]);
    settings.journal.min_free = Some(ByteSize::b(floor));
    let relay = Running::start(settings);
    let lines: Vec<String> = (0..4000).map(|n| format!("m,host=h v=\"{}\" {n}\n", "x".repeat(500))).collect();
    for part in lines.chunks(100) {
        relay.send(part);
    }
    relay.wait_state("a", "held");
    let full = relay.backend("a");
    assert!(full.last_error.as_ref().is_some_and(|error| error.contains("is full") && error.contains("max_age")));
    assert_eq!((full.dropped(), full.rejected(), full.delivered_lines + full.pending_lines), (0, 0, 4000));
    assert!(full.pending_lines > 0);
    let volume = rustix::fs::statvfs(disk.path()).expect("the volume");
    assert!(volume.f_bavail * volume.f_frsize >= floor);
    std::fs::remove_file(ballast).expect("space again");
    relay.wait_delivered("a", 4000);
    relay.wait_state("a", "up");
}
