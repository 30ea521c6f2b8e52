//! Memory that this process writes and another one only reads: what is large gets from one to the other without a copy
//! into the kernel and one out of it.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

/// A mapping of a file without a name.
#[derive(Debug)]
struct Memory {
    start: NonNull<c_void>,
    length: NonZeroUsize,
    /// Of one slot.
    size: usize,
}

// SAFETY: the mapping is this value's own and is not bound to a thread; what is done with it is said below.
unsafe impl Send for Memory {}
// SAFETY: shared, it is only asked where it is; whoever reads or writes through it owns a slot, or is a reader.
unsafe impl Sync for Memory {}

impl Memory {
    fn map(file: &OwnedFd, count: u32, size: usize, access: ProtFlags) -> io::Result<Memory> {
        let length = (count as usize).checked_mul(size).and_then(NonZeroUsize::new);
        let length = length.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice, which nobody else knows.
        let start = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Memory { start, length, size })
    }

    /// Where slot `index` begins; `None` if there is none.
    fn slot(&self, index: u32) -> Option<NonNull<u8>> {
        let at = self.size.checked_mul(index as usize)?;
        let fits = at.checked_add(self.size)? <= self.length.get();
        // SAFETY: it is within the mapping.
        fits.then(|| unsafe { self.start.cast::<u8>().add(at) })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is whole and our own, and with us goes the last who knows of it.
        let _ = unsafe { munmap(self.start, self.length.get()) };
    }
}

/// Memory that others may be given.
#[derive(Debug)]
struct Shared {
    memory: Memory,
    file: OwnedFd,
}

/// A part of such memory; whoever has it is the only one who writes there.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    index: u32,
    start: NonNull<u8>,
}

// SAFETY: no other slot of this memory has the same place, so it moves as a buffer does.
unsafe impl Send for Slot {}
// SAFETY: shared, it is only read.
unsafe impl Sync for Slot {}

/// Makes memory of `count` slots of `size` bytes. Nobody else can write to it or make it shorter, whoever gets the
/// descriptor (memfd_create(2), Linux 3.17; F_SEAL_FUTURE_WRITE, Linux 5.1). Errors where that cannot be had.
pub fn slots(count: u32, size: usize) -> io::Result<Vec<Slot>> {
    let file = memfd_create(c"agent-run", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let length = (count as usize).checked_mul(size).and_then(|length| i64::try_from(length).ok());
    ftruncate(&file, length.ok_or(io::ErrorKind::InvalidInput)?)?;
    let memory = Memory::map(&file, count, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    // Our own mapping, which is older, can still be written to.
    let others_read = SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE);
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL | others_read;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    let shared = Arc::new(Shared { memory, file });
    let slot = |index| Some(Slot { start: shared.memory.slot(index)?, shared: Arc::clone(&shared), index });
    Ok((0..count).filter_map(slot).collect())
}

impl Slot {
    /// Its number among those of its memory.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The memory, for whoever is to read it.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.shared.file.as_fd()
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: within the mapping, which lives as long as we do; bytes of a file are always valid. Nobody else writes:
        // in this process that takes this slot, and to others it is sealed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.shared.memory.size) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; other processes may only read, which no rule of this one is broken by.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.shared.memory.size) }
    }
}

/// Such memory as a reader has it.
#[derive(Debug)]
pub struct View(Memory);

impl View {
    /// Looks at memory that somebody else has made with [`slots`]. Errors if it is another file, or could be made
    /// shorter: reading what is not there any more would be the end of us (SIGBUS).
    pub fn of(file: OwnedFd, count: u32, size: usize) -> io::Result<View> {
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_or(0, |seals| seals);
        let length = fstat(&file)?.st_size;
        let stays = SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK);
        if !stays || u128::from(count) * size as u128 > u128::try_from(length).unwrap_or(0) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Memory::map(&file, count, size, ProtFlags::PROT_READ).map(View)
    }

    /// Copies the first `length` bytes of a slot; `None` if it has not so many.
    pub fn copy(&self, index: u32, length: usize) -> Option<Vec<u8>> {
        let start = self.0.slot(index).filter(|_| length <= self.0.size)?;
        let mut bytes = Vec::with_capacity(length);
        // SAFETY: so many bytes are within the mapping, whose file cannot become shorter, and within the new buffer,
        // which is another place. Whoever writes the slot has lent it to us; one that writes all the same gives wrong
        // bytes, which are bytes nevertheless.
        unsafe {
            std::ptr::copy_nonoverlapping(start.as_ptr(), bytes.as_mut_ptr(), length);
            bytes.set_len(length);
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else_can_be_done() {
        let mut made = slots(3, 4096).unwrap();
        for (slot, byte) in made.iter_mut().zip(1..) {
            slot.fill(byte);
        }
        let file = || made[1].file().try_clone_to_owned().unwrap();
        let view = View::of(file(), 3, 4096).unwrap();
        assert_eq!(view.copy(1, 3), Some(vec![2; 3]));
        assert_eq!(view.copy(2, 4096), Some(vec![3; 4096]));
        assert_eq!((view.copy(3, 1), view.copy(0, 4097)), (None, None));
        let size = u64::from(u32::MAX);
        assert!(ftruncate(file(), 0).is_err() && ftruncate(file(), size as i64).is_err());
        let writes = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        assert!(Memory::map(&file(), 3, 4096, writes).is_err());
        drop(made);
        assert_eq!(view.copy(0, 1), Some(vec![1]));
    }

    #[test]
    fn other_files_are_refused() {
        let file = || memfd_create(c"x", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let (longer, short) = (file(), file());
        ftruncate(&longer, 8192).unwrap();
        assert!(View::of(longer, 1, 4096).is_err(), "it can be made shorter");
        fcntl(&short, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        assert!(View::of(short, 1, 4096).is_err());
        assert!(View::of(std::fs::File::open("/dev/null").unwrap().into(), 1, 1).is_err());
    }
}
