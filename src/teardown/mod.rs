//! Ending a process tree: politely, then not, and never said to be over before it is.
//!
//! Guard and supervisor both use it, whoever has to end the run: [`progress::Progress`] decides
//! when what is due and is pure; [`prey::ProcessTree`] sends the signals and asks the kernel what is
//! left. The caller only waits.
//!
//! 1. The polite signal and SIGCONT, to the whole tree.
//! 2. Until the grace is over: wait for the tree (not the leader) to be empty.
//! 3. SIGKILL to all that is there, again and again, since a process can fork faster than one look.
//! 4. After ten seconds of that, what is left is named.

pub mod marks;
pub mod prey;
pub mod progress;
pub mod pursuit;
