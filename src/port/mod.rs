//! Ports: who holds one, taking one for a run, making room, and saying why that cannot be done.
//!
//! [`holders`] looks, [`verdict`] decides (without looking), [`displace`] carries out and looks again; [`claim`]
//! takes ports for a run, [`free`] makes room and says in a word what came of it, [`diagnose`] tells all that
//! can be known of one port.

pub mod claim;
mod containers;
pub mod diagnose;
pub mod displace;
pub mod free;
pub mod holders;
mod hunt;
pub mod verdict;
pub mod words;
