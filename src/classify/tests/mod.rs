//! Whether the verdicts on several hundred statements are what they should be.

use super::*;

mod fixtures;
mod fuzz;
mod limits;
mod properties;
mod second_opinion;
mod table;
