//! Authorities on the wire.

use kiln_proto::v1;

use crate::{app::views::AuthorityRow, authority};

/// Without their keys.
pub(super) fn write(rows: Vec<AuthorityRow>) -> Vec<v1::Authority> {
    let write = |row: AuthorityRow| v1::Authority {
        generation: row.generation,
        fingerprint: authority::fingerprint(&row.certificate),
        certificate_pem: authority::pem(&row.certificate),
        created_ms: row.created_at,
        trusted_until_ms: row.trusted_until.unwrap_or_default(),
    };
    rows.into_iter().map(write).collect()
}
