//! Page tokens: where the next page begins, and for which list.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kiln_core::{Millis, id::BuildId, spec::Violation};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Rows of a page where the caller names no number, and at most.
const DEFAULT_SIZE: u32 = 50;
const MAX_SIZE: u32 = 500;
/// Version, time, id, and the beginning of the digest of the list's filters.
const LENGTH: usize = 1 + 8 + 16 + 16;
const VERSION: u8 = 1;

/// Where a page begins.
pub(super) type Position = (Millis, BuildId);

/// What identifies a list: its filters and order.
pub(super) fn list_id(parts: &[&str]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize()[..16]);
    id
}

pub(super) fn size(field: &str, wanted: i32) -> Result<u32, Violation> {
    match u32::try_from(wanted) {
        Ok(0) => Ok(DEFAULT_SIZE),
        Ok(size) if size <= MAX_SIZE => Ok(size),
        _ => Err(Violation::new(field, format!("must be between 1 and {MAX_SIZE}, or zero"))),
    }
}

pub(super) fn write(list: [u8; 16], (created, build): Position) -> String {
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.push(VERSION);
    bytes.extend(created.to_be_bytes());
    bytes.extend(build.uuid().as_bytes());
    bytes.extend(list);
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn read(
    field: &str,
    list: [u8; 16],
    token: &str,
) -> Result<Option<Position>, Violation> {
    if token.is_empty() {
        return Ok(None);
    }
    let (position, made_for) =
        split(token).ok_or_else(|| Violation::new(field, "is no page token of this server"))?;
    if made_for != list {
        let message = "was made for other filters or another order; begin at the first page";
        return Err(Violation::new(field, message));
    }
    Ok(Some(position))
}

fn split(token: &str) -> Option<(Position, [u8; 16])> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let bytes: [u8; LENGTH] = bytes.try_into().ok()?;
    let (version, rest) = bytes.split_first()?;
    let (created, rest) = rest.split_first_chunk::<8>()?;
    let (build, rest) = rest.split_first_chunk::<16>()?;
    let position = (Millis::from_be_bytes(*created), BuildId::from_uuid(Uuid::from_bytes(*build)));
    (*version == VERSION).then_some((position, *rest.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_on_with_its_own_list_only() {
        let position = (1_234, BuildId::from_uuid(Uuid::from_u128(7)));
        let token = write(list_id(&["a", ""]), position);
        assert_eq!(read("t", list_id(&["a", ""]), &token), Ok(Some(position)));
        assert_eq!(read("t", list_id(&["a", ""]), ""), Ok(None));
        for (list, token) in [
            (list_id(&["", "a"]), token.as_str()),
            (list_id(&["a", ""]), "!"),
            (list_id(&["a", ""]), &token[1..]),
            (list_id(&["a", ""]), &format!("{token}AA")),
        ] {
            assert_eq!(read("t", list, token).unwrap_err().field, "t", "{token}");
        }
    }

    #[test]
    fn a_page_has_bounds() {
        assert_eq!(size("s", 0), Ok(50));
        assert_eq!(size("s", 500), Ok(500));
        assert!(size("s", 501).is_err() && size("s", -1).is_err());
    }
}
