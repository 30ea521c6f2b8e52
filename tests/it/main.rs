//! The binary against real processes. One integration binary, so that it is linked once.
//!
//! Each test has a place of its own: state directory, home and a marker in the environment of all that it
//! starts. When the place goes, the test fails if anything that bears the marker, or any entry of an
//! unfinished run, is left.

mod harness;

mod architecture;
mod asked;
mod bad_input;
mod clock;
mod directory;
mod faults;
mod handed_on;
mod library;
mod limits;
mod matrix;
mod outcomes;
mod owner;
mod ports;
mod readme;
mod recovery;
mod replies;
mod reuse;
mod server;
mod servers;
mod session;
mod settings;
mod sweep;
mod terminal;
mod verbs;
mod vm;
