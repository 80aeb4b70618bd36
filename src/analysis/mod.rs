//! Conclusions from what the kernel reports: direction, verdict, advice, how to wait. Values of `model` go in and come out;
//! there is no I/O and no clock here.

pub mod advice;
pub mod call;
pub mod capacity;
pub mod conflict;
pub mod connect;
pub mod count;
pub mod direction;
pub mod doctor;
pub mod groups;
pub mod history;
pub mod limits;
pub mod makers;
pub mod monitoring;
pub mod next;
pub mod owner_counts;
pub mod states;
pub mod summary;
pub mod tally;
pub mod verdict;
pub mod waiting;
