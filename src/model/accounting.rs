//! How packets are counted.

use serde::{Deserialize, Serialize};

/// How packets are counted. The choice changes the cost of counting, and flows only in rare cases (`docs/accuracy.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accounting {
    /// By the kernel if it can, else by samples.
    #[default]
    Auto,
    /// By programs in the kernel, which sample only the packets that say something new.
    Kernel,
    /// By a sample of each packet.
    Samples,
}
