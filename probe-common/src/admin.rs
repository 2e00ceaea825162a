//! What both binaries say to their operator: `/live`, `/ready`, `/metrics`, `/state`. To be filled in by the shells.
