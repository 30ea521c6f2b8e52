//! A unified cgroup v2 hierarchy with controllers, which few test machines have: in a small virtual machine,
//! Debian's kernel around our own static binaries, without help by the hardware.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{agent_run, misbehave, skipped};

/// Where `.ci/fetch-vm` puts kernel and qemu.
fn machine() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vm")
}

/// One entry of an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst, "newc").
fn entry(archive: &mut impl Write, number: u32, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let (size, length) = (content.len(), name.len() + 1);
    write!(archive, "070701{number:08X}{mode:08X}{:08X}{:08X}{:08X}{:08X}{size:08X}", 0, 0, 1, 0)?;
    write!(archive, "{:08X}{:08X}{:08X}{:08X}{length:08X}{:08X}{name}\0", 0, 0, 0, 0, 0)?;
    archive.write_all(&[0; 3][..(4 - (110 + length) % 4) % 4])?;
    archive.write_all(content)?;
    archive.write_all(&[0; 3][..(4 - size % 4) % 4])
}

/// Without its debug information, or it would not fit into the machine.
fn stripped(binary: &Path, place: &Path) -> Vec<u8> {
    let small = place.join("stripped");
    let status = Command::new("strip").arg(binary).arg("-o").arg(&small).status().unwrap();
    assert!(status.success());
    fs::read(small).unwrap()
}

fn initramfs(place: &Path) -> PathBuf {
    let path = place.join("initramfs");
    let mut archive = io::BufWriter::new(File::create(&path).unwrap());
    let (directory, program) = (0o040_755, 0o100_755);
    let own = std::env::current_exe().unwrap();
    let [ours, helper, tests] =
        [Path::new(agent_run()), Path::new(misbehave()), &own].map(|binary| stripped(binary, place));
    let entries: [(&str, u32, &[u8]); 8] = [
        ("dev", directory, &[]),
        ("proc", directory, &[]),
        ("t", directory, &[]),
        ("init", program, &helper),
        ("t/agent-run", program, &ours),
        ("t/misbehave", program, &helper),
        ("t/it", program, &tests),
        ("TRAILER!!!", 0, &[]),
    ];
    for (number, (name, mode, content)) in entries.into_iter().enumerate() {
        entry(&mut archive, number as u32 + 1, name, mode, content).unwrap();
    }
    archive.flush().unwrap();
    path
}

#[test]
fn the_promise_holds_in_a_unified_hierarchy() {
    let machine = machine();
    if !machine.join("ready").exists() {
        return skipped("there is no virtual machine; .ci/fetch-vm gets one (qemu and a kernel, 45 MB)");
    }
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let own = machine.join("root/usr/bin/qemu-system-x86_64");
    // A guest that hangs must not keep the tests.
    let mut qemu = Command::new("timeout");
    qemu.args(["-k", "5", "900"]);
    qemu.arg(if own.exists() { own.as_os_str() } else { OsStr::new("qemu-system-x86_64") });
    let libraries =
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|place| machine.join("root").join(place));
    qemu.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap());
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-M",
        "pc",
        "-accel",
        "tcg",
    ]);
    qemu.args(["-cpu", "max", "-m", "768", "-smp", "2", "-serial", "stdio", "-append"]);
    // As pid 1 with an argument the helper would be the helper, so there is none after `--`.
    qemu.arg("console=ttyS0 loglevel=1 panic=-1 cryptomgr.notests");
    qemu.arg("-kernel").arg(machine.join("vmlinuz")).arg("-initrd").arg(initramfs(place.path()));
    let output = qemu.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    // qemu returns 0 for a panic too; only this line counts.
    assert!(said.contains("VM-EXIT-STATUS 0\n"), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}
