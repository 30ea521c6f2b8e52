//! Every environment variable that `agent-run` reads or sets.

/// Set for the command: the run's id. Also the mark by which its processes are found.
pub const ID: &str = "AGENT_RUN_ID";
/// Set for the command: the managed directory.
pub const DIR: &str = "AGENT_RUN_DIR";
/// Set for the command: the ids of the runs that this one runs in, outermost first, with commas.
pub const PARENTS: &str = "AGENT_RUN_PARENTS";
/// Set for the command: the managed directory, for whatever makes temporary files.
pub const TMPDIR: &str = "TMPDIR";

/// Set for the command: its first port. Each has its own variable too: `PORT0`, `PORT1`...
pub const PORT: &str = "PORT";
/// Set for the command with a port: the address to listen on.
pub const HOST: &str = "HOST";

/// Read: the state directory, in place of `/var/tmp/agent-run-UID`.
pub const STATE_DIR: &str = "AGENT_RUN_STATE_DIR";
/// Read by the library: the `agent-run` binary to launch with.
pub const BIN: &str = "AGENT_RUN_BIN";
/// Read: where the user's configuration is, in place of `~/.config`.
pub const CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// Read: the user's home, for `~/.config`.
pub const HOME: &str = "HOME";

/// Read by `port diagnose`: where the container engine listens.
pub const DOCKER_HOST: &str = "DOCKER_HOST";
/// Read by `port diagnose`: the directory of the user's own sockets.
pub const RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";

/// Read: unless it is empty or 0, every verb answers as with `--json`.
pub const JSON: &str = "AGENT_RUN_JSON";

/// Read: begins the name of each setting, as in `AGENT_RUN_TTL` (see `settings`).
pub const SETTING_PREFIX: &str = "AGENT_RUN_";
