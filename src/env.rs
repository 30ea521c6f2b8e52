//! Every environment variable that `agent-run` reads or sets.

/// Set for the command: the run's id. Also the mark by which its processes are found.
pub const ID: &str = "AGENT_RUN_ID";
/// Set for the command: the managed directory.
pub const DIR: &str = "AGENT_RUN_DIR";
/// Set for the command: the ids of the runs that this one runs in, outermost first, with commas.
pub const PARENTS: &str = "AGENT_RUN_PARENTS";
/// Set for the command: the managed directory, for whatever makes temporary files.
pub const TMPDIR: &str = "TMPDIR";

/// Read: the state directory, in place of `/var/tmp/agent-run-UID`.
pub const STATE_DIR: &str = "AGENT_RUN_STATE_DIR";
/// Read by the library: the `agent-run` binary to launch with.
pub const BIN: &str = "AGENT_RUN_BIN";
/// Read: where the user's configuration is, in place of `~/.config`.
pub const CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// Read: the user's home, for `~/.config`.
pub const HOME: &str = "HOME";

/// Read: begins the name of each setting, as in `AGENT_RUN_TTL` (see `settings`).
pub const SETTING_PREFIX: &str = "AGENT_RUN_";
