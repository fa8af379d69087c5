//! Backing up.
