//! The only folder that names aya or holds unsafe code.
