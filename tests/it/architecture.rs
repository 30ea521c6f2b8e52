//! The layers: imports only point downward.

use std::fs;
use std::path::{Path, PathBuf};

/// From the top. Modules of one line do not import each other.
const LAYERS: [&[&str]; 20] = [
    &["main"],
    &["cli"],
    &["manager"],
    &["client", "settings", "failure"],
    &["server", "session", "sweep"],
    &["readiness"],
    &["launch"],
    &["port", "pool"],
    &["stop"],
    &["guard", "supervisor", "recover"],
    &["ending", "oneshot"],
    &["teardown", "rundir", "control", "owner", "containment"],
    &["usage", "output"],
    &["registry"],
    &["run"],
    &["protocol"],
    &["exit", "limits", "ports", "programs", "service"],
    &["lease"],
    &["env"],
    &["sys"],
];

/// `failure` names every error below it, so it alone may see its neighbours.
const SEES_NEIGHBOURS: &str = "failure";

fn level(module: &str) -> usize {
    let found = LAYERS.iter().position(|layer| layer.contains(&module));
    found.unwrap_or_else(|| panic!("module '{module}' is not in the list of layers"))
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The module that a file belongs to: its first directory, or its own name.
fn module_of(path: &Path) -> String {
    let relative = path.strip_prefix(root()).unwrap();
    relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

fn imported(text: &str) -> Vec<String> {
    let code =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (index, _) in code.match_indices("crate::") {
        let rest = &code[index + "crate::".len()..];
        assert!(
            !rest.starts_with('{'),
            "write one `use crate::module` a module, so that this test can read it"
        );
        found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
    }
    found
}

#[test]
fn imports_point_downward() {
    for path in sources(&root()) {
        let module = module_of(&path);
        if module == "lib" {
            continue;
        }
        for other in imported(&fs::read_to_string(&path).unwrap()) {
            let (from, to) = (level(&module), level(&other));
            let neighbours = from == to && (module == other || module == SEES_NEIGHBOURS);
            assert!(from < to || neighbours, "{} imports '{other}', which is not below it", path.display());
        }
    }
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    for path in sources(&root()) {
        let text = fs::read_to_string(&path).unwrap();
        let has = text.lines().any(|line| {
            line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl")
        });
        assert!(!has || module_of(&path) == "sys", "{} has unsafe code", path.display());
    }
}
