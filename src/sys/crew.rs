//! Looking at many processes on several CPUs at once.

use std::thread;

/// Fewer things than this are not worth a thread.
const MANY: usize = 256;
const MOST_THREADS: usize = 4;

/// Calls `part(first, step)` so often, on as many threads, that whoever takes each `step`th of `count` things from `first` on has
/// taken all. When it returns, none of the threads is left: whoever forks next must have one.
pub fn share(count: usize, part: &(impl Fn(usize, usize) + Sync)) {
    let cpus = if count < MANY { 1 } else { thread::available_parallelism().map_or(1, Into::into) };
    let crew = cpus.min(MOST_THREADS);
    if crew == 1 {
        return part(0, 1);
    }
    let before = threads();
    thread::scope(|scope| {
        for first in 0..crew {
            // Where no thread can be made (a limit of processes), this one does its part.
            if thread::Builder::new().spawn_scoped(scope, move || part(first, crew)).is_err() {
                part(first, crew);
            }
        }
    });
    // A joined thread may take a moment to go.
    const PATIENCE: usize = 1000;
    for _ in (0..PATIENCE).take_while(|_| threads() > before) {
        thread::yield_now();
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}
