//! The managed directory: where the command starts, what is copied, what is kept.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::harness::{Place, Running, misbehave, wait_until};

#[test]
fn scratch_starts_in_the_managed_directory() {
    let place = Place::new();
    let done =
        place.run(&["--scratch", "sh", "-c", "echo x > file; pwd; echo $AGENT_RUN_DIR"]).expect_code(0);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(lines[0], lines[1]);
    assert!(!fs::exists(lines[0]).unwrap());
    assert_eq!(place.the_ended()["dir"], serde_json::Value::Null);
}

#[test]
fn copies_are_made_and_the_originals_left_alone() {
    let place = Place::new();
    fs::create_dir_all(place.path("work/app/src")).unwrap();
    fs::write(place.path("work/app/src/main"), "original").unwrap();
    fs::write(place.path("work/single"), "one").unwrap();
    let done = place.run(&[
        "--copy",
        "app",
        "--copy",
        "single",
        "sh",
        "-c",
        "cat single app/src/main; echo changed > app/src/main",
    ]);
    assert_eq!(done.expect_code(0).stdout, "oneoriginal");
    assert_eq!(fs::read_to_string(place.path("work/app/src/main")).unwrap(), "original");
}

#[test]
fn the_directory_is_kept_as_asked() {
    for (keep, code, stays) in
        [("never", "1", false), ("on-failure", "0", false), ("on-failure", "1", true), ("always", "0", true)]
    {
        let place = Place::new();
        let script = format!("echo x > $AGENT_RUN_DIR/file; exit {code}");
        let done = place.run(&["--keep", keep, "sh", "-c", &script]).expect_code(code.parse().unwrap());
        let directory = place.the_ended()["dir"].as_str().map(str::to_owned);
        assert_eq!(directory.is_some(), stays, "{keep} {code}");
        if let Some(directory) = directory {
            assert_eq!(fs::read_to_string(format!("{directory}/file")).unwrap(), "x\n");
            assert!(done.stderr.contains(&directory), "{done:?}");
        }
    }
}

#[test]
fn modes_and_depth_do_not_save_what_is_left_in_it() {
    let place = Place::new();
    let script = "cd $TMPDIR; mkdir -p ro/deep none; echo x > ro/deep/file; chmod 500 ro/deep ro; chmod 0 none; \
                  i=0; while [ $i -lt 300 ]; do mkdir dddddddddddddddd; cd dddddddddddddddd; i=$((i+1)); done; ln -s / link";
    place.run(&["sh", "-c", script]).expect_code(0);
    assert_eq!(place.the_ended()["dir"], serde_json::Value::Null);
}

#[test]
fn others_cannot_look_in() {
    let place = Place::new();
    let done = place
        .run(&["sh", "-c", "umask 0; stat -c %a $TMPDIR $TMPDIR/.. $TMPDIR/../.. $TMPDIR/../../.."])
        .expect_code(0);
    assert_eq!(done.stdout, "700\n700\n700\n700\n");
    let mode = fs::metadata(place.state()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_log_has_a_copy_of_both_streams() {
    let place = Place::new();
    let done = place.run(&["--log", &place.text("log"), "sh", "-c", "echo out; echo err >&2"]).expect_code(0);
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out\n", "err\n"));
    let mut lines: Vec<String> =
        fs::read_to_string(place.path("log")).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["err", "out"]);
    let again = place.run(&["logs", place.the_ended()["id"].as_str().unwrap()]).expect_code(0);
    assert_eq!(again.stdout.len(), 8);
    place.run(&["--log", &place.text("log"), misbehave(), "exit", "0"]).expect_code(0);
    assert_eq!(fs::read_to_string(place.path("log")).unwrap(), "");
}

#[test]
fn five_thousand_levels_are_no_obstacle() {
    let place = Place::new();
    // Names so long that no path reaches the bottom, made from within.
    let script = "import os\nos.chdir(os.environ['TMPDIR'])\n\
                  for _ in range(5000):\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)\n";
    place.run(&["python3", "-c", script]).expect_code(0);
    assert!(place.the_ended()["dir"].is_null());
}

#[test]
fn whoever_writes_from_outside_does_not_keep_it() {
    let place = Place::new();
    let mut command = place.command(&["--", misbehave(), "touch", "../up", "await", "../go", "exit", "0"]);
    command.stdin(std::process::Stdio::null());
    let run = Running::spawn(command);
    place.wait_for_file("up");
    let managed = std::path::PathBuf::from(place.the_record()["dir"].as_str().unwrap());
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (stop, managed) = (std::sync::Arc::clone(&stop), managed.clone());
        std::thread::spawn(move || {
            let mut number = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                number += 1;
                // Refused as soon as the directory is gone.
                let _ = std::fs::create_dir(managed.join(format!("d{number}")));
                let _ = std::fs::write(managed.join(format!("d{number}/f")), "x");
            }
        })
    };
    std::fs::write(place.path("go"), "go").unwrap();
    run.wait().expect_code(0);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    assert!(!managed.exists());
    assert!(place.the_ended()["dir"].is_null());
}

#[test]
fn what_could_not_be_removed_is_tried_again() {
    if agent_run::sys::process::own_uid() == 0 {
        return crate::harness::skipped("nothing keeps root from removing a file");
    }
    let place = Place::new();
    // The entry itself may not be changed, so what is in it stays.
    let done = place.run(&["sh", "-c", "chmod 500 $TMPDIR/.."]).expect_code(0);
    assert!(done.stderr.contains("could not remove"), "{done:?}");
    let entry = place.unfinished().remove(0);
    assert!(place.the_record()["end"]["dir_error"].is_string());
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&entry, open).unwrap();
    std::fs::remove_file(place.state().join("looked")).unwrap();
    place.run(&["true"]).expect_code(0);
    wait_until("it is finished", || place.unfinished().is_empty());
    assert!(!place.state().join("ended").join(entry.file_name().unwrap()).join("tmp").exists());
}
