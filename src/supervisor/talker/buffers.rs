//! Where a program's output is read to. Whoever has a buffer drops it, and it comes back here.

use std::ops::{Deref, DerefMut};

use tokio::sync::mpsc;

use crate::sys::shared::{self, Slot};

/// As much is read at once.
pub(in crate::supervisor) const CHUNK: usize = 256 * 1024;
/// As many slots a session has. On the way to one client are fewer, see [`super::client`] and
/// [`crate::supervisor::passing`].
pub(in crate::supervisor) const SLOTS: u32 = 8;

/// A place for output.
#[derive(Debug)]
pub(in crate::supervisor) struct Buffer {
    /// Taken by the end alone.
    memory: Option<Memory>,
    home: mpsc::UnboundedSender<Memory>,
}

#[derive(Debug)]
enum Memory {
    Own(Vec<u8>),
    Shared(Slot),
}

impl Buffer {
    /// Returns the slot that it is, if clients can read it where it is.
    pub(in crate::supervisor) fn slot(&self) -> Option<&Slot> {
        match &self.memory {
            Some(Memory::Shared(slot)) => Some(slot),
            _ => None,
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Some(Memory::Own(bytes)) => bytes,
            Some(Memory::Shared(slot)) => slot,
            None => &[],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Some(Memory::Own(bytes)) => bytes,
            Some(Memory::Shared(slot)) => slot,
            None => &mut [],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Without a talker nobody needs it.
        let _ = self.memory.take().map(|memory| self.home.send(memory));
    }
}

/// The buffers that nobody has.
#[derive(Debug)]
pub(super) struct Buffers {
    home: mpsc::UnboundedSender<Memory>,
    returned: mpsc::UnboundedReceiver<Memory>,
    /// Slots were made, or cannot be had.
    made: bool,
}

impl Buffers {
    /// Makes the place, and a first buffer: most sessions never need another one.
    pub(super) fn new() -> (Buffers, Buffer) {
        let (home, returned) = mpsc::unbounded_channel();
        let buffers = Buffers { home, returned, made: false };
        let first = buffers.buffer(Memory::Own(vec![0; CHUNK]));
        (buffers, first)
    }

    fn buffer(&self, memory: Memory) -> Buffer {
        Buffer { memory: Some(memory), home: self.home.clone() }
    }

    /// Returns one: a slot if there is any.
    pub(super) fn take(&mut self) -> Buffer {
        if !std::mem::replace(&mut self.made, true) {
            // An old kernel, or no memory: then all goes through the socket.
            let slots = shared::slots(SLOTS, CHUNK).unwrap_or_default();
            slots.into_iter().for_each(|slot| drop(self.buffer(Memory::Shared(slot))));
        }
        let mut own = None;
        while let Ok(memory) = self.returned.try_recv() {
            match memory {
                Memory::Shared(_) => return self.buffer(memory),
                Memory::Own(_) => own = Some(memory),
            }
        }
        self.buffer(own.unwrap_or_else(|| Memory::Own(vec![0; CHUNK])))
    }
}
