//! Work on several cores: a part of it on workers, threads that are made for the first long list and stay, and the rest on
//! the calling thread.
//!
//! They stay because a thread costs more than its making: a scheduler that packs threads onto few cores leaves a new one
//! waiting where its maker runs. One that goes on from reading to sorting to writing stays where it is. Who finds them at
//! work for somebody else works alone: the cores are busy then.
//!
//! A worker blocks all signals, and has the network namespace and the credentials of the thread that asked first: its work
//! must depend on none of these. After it no user namespace can be entered any more, for that takes a process of one thread.

use std::io::{self, Write};
use std::mem;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, mpsc};
use std::thread;

use nix::sys::signal::SigSet;
use rayon::{Scope, ThreadPool, ThreadPoolBuilder};

/// Rows that are formatted at once.
const CHUNK: usize = 256;

/// Fewer rows than this are not worth another thread.
const WORTHWHILE: usize = 16 * CHUNK;

/// The most workers: each has memory of its own, and what is left to do after the kernel's walk is short.
const MOST: usize = 3;

/// `None` where there is no second core, or no thread can be made.
static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();

static AT_WORK: Mutex<()> = Mutex::new(());

/// The workers, for one caller at a time.
pub struct Workers {
    pool: &'static ThreadPool,
    _at_work: MutexGuard<'static, ()>,
}

impl Workers {
    /// `None`: there are none, or they are at work for somebody else.
    #[must_use]
    pub fn take() -> Option<Self> {
        let at_work = match AT_WORK.try_lock() {
            Ok(at_work) => at_work,
            // There is nothing that a panic could have left half done.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // A test that is about them waits for its turn.
            Err(TryLockError::WouldBlock) if cfg!(test) => AT_WORK.lock().unwrap_or_else(PoisonError::into_inner),
            Err(TryLockError::WouldBlock) => return None,
        };
        let make = || {
            let others = thread::available_parallelism().ok()?.get() - 1;
            // A signal goes to a thread that waits for it: one that holds signals back must not be passed over.
            let block = |_| {
                let _ = SigSet::all().thread_block();
            };
            let pool = |workers| ThreadPoolBuilder::new().num_threads(workers).start_handler(block).build().ok();
            (others > 0).then(|| pool(others.min(MOST)).or_else(|| pool(1)))?
        };
        Some(Self { pool: POOL.get_or_init(make).as_ref()?, _at_work: at_work })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `own` here, and what it spawns in the scope on the workers. Returns when all of it is done.
    pub fn beside<'s, T>(&self, own: impl FnOnce(&Scope<'s>) -> T) -> T {
        self.pool.in_place_scope(own)
    }
}

/// Workers where so many rows are worth them.
fn workers(rows: usize) -> Option<Workers> {
    (rows >= WORTHWHILE).then(Workers::take)?
}

/// Writes the bytes of rows `0..rows` to `out`, in order; `bytes_of` makes those of some of them, in the room of others that are
/// not needed any more. Memory is bounded.
pub fn write(
    out: &mut dyn Write,
    rows: usize,
    bytes_of: &(impl Fn(Range<usize>, Vec<u8>) -> Vec<u8> + Sync),
) -> io::Result<()> {
    let chunks = rows.div_ceil(CHUNK);
    let range = |chunk: usize| chunk * CHUNK..rows.min((chunk + 1) * CHUNK);
    let mut bytes = vec![];
    let mut write_here = |out: &mut dyn Write, chunk| {
        bytes = bytes_of(range(chunk), mem::take(&mut bytes));
        out.write_all(&bytes)
    };
    let Some(workers) = workers(rows) else {
        return (0..chunks).try_for_each(|chunk| write_here(out, chunk));
    };
    let threads = workers.count() + 1;
    workers.beside(|scope| {
        // Each makes every n-th chunk, the first one here; taking them in turn gives them back in order.
        let others: Vec<_> = (1..threads)
            .map(|worker| {
                let (sender, receiver) = mpsc::sync_channel(1);
                let (recycle, used) = mpsc::channel();
                scope.spawn(move |_| {
                    for chunk in (worker..chunks).step_by(threads) {
                        let bytes = bytes_of(range(chunk), used.try_recv().unwrap_or_default());
                        // The writer hangs up when it cannot write.
                        if sender.send(bytes).is_err() {
                            return;
                        }
                    }
                });
                (receiver, recycle)
            })
            .collect();
        for chunk in 0..chunks {
            let Some((made, recycle)) = (chunk % threads).checked_sub(1).map(|worker| &others[worker]) else {
                write_here(out, chunk)?;
                continue;
            };
            let bytes = made.recv().map_err(|_| io::Error::other("a formatting thread ended early"))?;
            out.write_all(&bytes)?;
            // It may have its last chunk already.
            let _ = recycle.send(bytes);
        }
        Ok(())
    })
}

/// Folds rows `0..rows` on every core, each part from a fresh value, and joins the parts in their order.
pub fn fold<T: Send>(rows: usize, part: &(impl Fn(Range<usize>) -> T + Sync), join: impl FnMut(T, T) -> T) -> T {
    let Some(workers) = workers(rows) else { return part(0..rows) };
    let threads = workers.count() + 1;
    let size = rows.div_ceil(threads);
    let rows_of = |worker: usize| (size * worker).min(rows)..rows.min(size * (worker + 1));
    let mut others: Vec<Option<T>> = (1..threads).map(|_| None).collect();
    let first = workers.beside(|scope| {
        for (worker, other) in (1..).zip(&mut others) {
            scope.spawn(move |_| *other = Some(part(rows_of(worker))));
        }
        part(rows_of(0))
    });
    others.into_iter().flatten().fold(first, join)
}

/// Sorts, and fast where parts are in order already.
pub fn sort<T: Ord + Send>(values: &mut [T]) {
    if let Some(workers) = workers(values.len()) {
        let size = values.len().div_ceil(workers.count() + 1);
        let (own, others) = values.split_at_mut(size);
        workers.beside(|scope| {
            for other in others.chunks_mut(size) {
                scope.spawn(|_| other.sort());
            }
            own.sort();
        });
    }
    // A stable sort finds the parts that are in order, and merges them.
    values.sort();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough for every worker to have many chunks, and the last one not full.
    const ROWS: usize = 100 * CHUNK + 1;

    fn numbers(range: Range<usize>, mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.clear();
        range.for_each(|number| bytes.extend(format!("{number}\n").bytes()));
        bytes
    }

    #[test]
    fn there_are_workers_where_there_is_a_second_core() {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(Workers::take().map_or(0, |workers| workers.count()), (cores - 1).min(MOST));
    }

    #[test]
    fn bytes_are_written_in_the_order_of_the_rows() {
        for rows in [0, 1, CHUNK, WORTHWHILE - 1, WORTHWHILE, ROWS] {
            let mut out = vec![];
            write(&mut out, rows, &numbers).expect("written");
            assert!(out == numbers(0..rows, vec![]), "{rows} rows");
        }
    }

    #[test]
    fn a_writer_that_fails_ends_it_and_the_workers_are_free_again() {
        struct Full(usize);

        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        for room in [0, 10_000, 50_000] {
            let error = write(&mut Full(room), ROWS, &numbers).expect_err("no room");
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert_eq!(fold(ROWS, &|range| range.count(), |a, b| a + b), ROWS);
        }
    }

    #[test]
    fn parts_are_joined_in_the_order_of_the_rows() {
        for rows in [0, 1, WORTHWHILE, ROWS] {
            let all = fold(rows, &|range| range.collect::<Vec<_>>(), |a, b| [a, b].concat());
            assert!(all.iter().copied().eq(0..rows), "{rows} rows");
        }
    }
}
