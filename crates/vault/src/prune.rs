//! Pruning.
