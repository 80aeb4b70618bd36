//! Draws conclusions from what the kernel reports: directions, verdicts, advice, and the plan of a wait. The functions take and return
//! plain values. They do no I/O and read no clock.

pub mod advice;
pub mod call;
pub mod call_counts;
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
pub mod verdict;
pub mod waiting;
