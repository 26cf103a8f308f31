//! The engine of guesses.
//!
//! A [`Guess`] says what it needs and what it gives, which [`Probe`]s it wants to look through, how to make the kernel
//! pass by them with values of its choice, and how to find those values in what was seen. [`plan`] puts guesses into
//! levels, so that each finds what it needs given by those below. [`run`] installs the probes of a level ([`board`]) and
//! runs each of its guesses on a thread of its own, again and again with new values, until one candidate is left for every
//! key ([`clues`]).

mod board;
mod clues;
mod guess;
mod plan;
mod probe;
mod random;
mod run;
mod shot;
mod window;

pub(crate) use board::Board;
pub(crate) use clues::Clues;
pub(crate) use guess::{AnyGuess, Guess, Scene};
#[cfg(test)]
pub(crate) use probe::ARGUMENTS;
pub(crate) use probe::{Probe, WINDOW};
pub(crate) use random::Random;
pub(crate) use run::{Terms, run_all};
pub(crate) use shot::Shot;
pub(crate) use window::{WORD, Window, bytes_of, is_kernel_pointer};
