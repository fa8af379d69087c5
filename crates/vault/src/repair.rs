//! Repairing.
