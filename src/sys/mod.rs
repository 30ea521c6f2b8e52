//! The platform: the only room with `unsafe` code. Everything above sees safe functions and
//! plain types. Linux is built and tested; what another system needs differs only here.

pub mod cgroup;
pub mod children;
pub mod clock;
pub mod crew;
pub mod descriptors;
pub mod fault;
pub mod files;
pub mod inherit;
pub mod leader;
pub mod namespace;
pub mod net;
pub mod process;
pub mod readiness;
pub mod shared;
pub mod signal;
pub mod sockets;
pub mod spawn;
pub mod tcp;
pub mod tree;
pub mod tty;
pub mod waits;
