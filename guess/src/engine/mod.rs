//! Runs guesses.
//!
//! A [`Guess`] says which keys it needs and gives, and which [`Probe`]s it uses. It triggers calls of the
//! probed functions with values that it chooses, and finds those values in the [`Call`]s that the probes captured.
//! [`plan`] sorts guesses into levels, so that earlier levels give what later ones need. [`run`] installs the probes of
//! a level ([`installer`]) and runs each guess of the level on a thread of its own, again and again with new values,
//! until one candidate is left for every key ([`candidates`]).

mod call;
mod candidates;
mod guess;
mod installer;
mod plan;
mod probe;
mod random;
mod run;
mod window;

pub(crate) use call::Call;
pub(crate) use candidates::Evidence;
#[cfg(test)]
pub(crate) use guess::NoCalls;
pub(crate) use guess::{AnyGuess, Context, Guess};
pub(crate) use installer::ProbeInstaller;
#[cfg(test)]
pub(crate) use probe::ARGUMENTS;
pub(crate) use probe::{MAX_WINDOW, Probe};
pub(crate) use random::Random;
pub(crate) use run::{RunOptions, run_all};
pub(crate) use window::{WORD, Window, bytes_of, is_kernel_pointer};
