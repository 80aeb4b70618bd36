//! What follows from the kernel's answers: direction, verdict, advice, how to wait. Model in, model out; no I/O, no clock.

pub mod advice;
pub mod capacity;
pub mod conflict;
pub mod direction;
pub mod doctor;
pub mod groups;
pub mod history;
pub mod limits;
pub mod next;
pub mod states;
pub mod summary;
pub mod verdict;
pub mod waiting;
