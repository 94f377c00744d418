//! A sealed log: zstd in independent frames with a table of their sizes behind them, in the Zstandard seekable
//! format, so that any byte costs one frame and `zstd -d` reads the whole.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
};

/// Bytes of a log in one frame: what the reading of one byte costs, and what a follower asks for at once.
pub const FRAME: usize = 256 << 10;

/// Fast, as a log is compressed once and mostly read never.
const LEVEL: i32 = 1;

const TABLE_MAGIC: u32 = 0x184D_2A5E;
const FOOTER_MAGIC: u32 = 0x8F92_EAB1;
const FOOTER: usize = 9;
const ENTRY: usize = 8;
/// Frames of a log of 64 GiB: a table that claims more is damaged.
const MAX_FRAMES: u32 = 1 << 18;

/// Writes frames, then their table.
pub struct Packer<W> {
    out: W,
    compressor: zstd::bulk::Compressor<'static>,
    sizes: Vec<(u32, u32)>,
}

impl<W: Write> Packer<W> {
    pub fn new(out: W) -> io::Result<Self> {
        Ok(Self { out, compressor: zstd::bulk::Compressor::new(LEVEL)?, sizes: Vec::new() })
    }

    /// Adds a frame of at most [`FRAME`] bytes.
    pub fn frame(&mut self, bytes: &[u8]) -> io::Result<()> {
        let packed = self.compressor.compress(bytes)?;
        self.out.write_all(&packed)?;
        self.sizes.push((length(packed.len())?, length(bytes.len())?));
        Ok(())
    }

    /// Writes the table and gives the file back.
    pub fn finish(mut self) -> io::Result<W> {
        let frames = length(self.sizes.len())?;
        self.out.write_all(&TABLE_MAGIC.to_le_bytes())?;
        self.out.write_all(&length(self.sizes.len() * ENTRY + FOOTER)?.to_le_bytes())?;
        for (packed, raw) in self.sizes {
            self.out.write_all(&packed.to_le_bytes())?;
            self.out.write_all(&raw.to_le_bytes())?;
        }
        self.out.write_all(&frames.to_le_bytes())?;
        self.out.write_all(&[0])?;
        self.out.write_all(&FOOTER_MAGIC.to_le_bytes())?;
        Ok(self.out)
    }
}

fn length(value: usize) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| damaged("a frame is too long"))
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Where a frame lies in the file, and how many bytes of the log it holds.
#[derive(Debug, Clone, Copy)]
struct Frame {
    at: u64,
    packed: u32,
    raw: u32,
}

/// At most `limit` bytes of a sealed log from `offset` on; fewer at its end only.
pub fn read(file: &File, offset: u64, limit: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(limit.min(FRAME));
    let mut start = 0;
    for frame in table(file)? {
        let end = start + u64::from(frame.raw);
        let from = offset + out.len() as u64;
        if end > from && out.len() < limit {
            let bytes = unpack(file, frame)?;
            let skip = usize::try_from(from - start).unwrap_or(usize::MAX);
            let take = (bytes.len().saturating_sub(skip)).min(limit - out.len());
            let part = bytes.get(skip..skip + take).ok_or_else(|| damaged("a frame is short"))?;
            out.extend_from_slice(part);
        }
        start = end;
    }
    Ok(out)
}

fn unpack(file: &File, frame: Frame) -> io::Result<Vec<u8>> {
    let mut packed = vec![0; frame.packed as usize];
    file.read_exact_at(&mut packed, frame.at)?;
    let bytes = zstd::bulk::decompress(&packed, frame.raw as usize)?;
    if bytes.len() == frame.raw as usize { Ok(bytes) } else { Err(damaged("a frame is short")) }
}

fn table(file: &File) -> io::Result<Vec<Frame>> {
    let size = file.metadata()?.len();
    let mut footer = [0; FOOTER];
    file.read_exact_at(
        &mut footer,
        size.checked_sub(FOOTER as u64).ok_or_else(|| damaged("no table"))?,
    )?;
    let (frames, magic) = (word(&footer, 0), word(&footer, 5));
    if magic != FOOTER_MAGIC || frames > MAX_FRAMES {
        return Err(damaged("no table of frames at the end"));
    }
    let mut entries = vec![0; frames as usize * ENTRY];
    let begin = size.checked_sub((FOOTER + entries.len()) as u64);
    file.read_exact_at(&mut entries, begin.ok_or_else(|| damaged("the table is too long"))?)?;
    let mut at = 0;
    let frame = |entry: &[u8]| {
        let frame = Frame { at, packed: word(entry, 0), raw: word(entry, 4) };
        at += u64::from(frame.packed);
        if frame.raw as usize > FRAME || frame.packed as usize > 2 * FRAME {
            return Err(damaged("a frame is too long"));
        }
        Ok(frame)
    };
    entries.chunks_exact(ENTRY).map(frame).collect()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes)
}

impl<W> std::fmt::Debug for Packer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("frames", &self.sizes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(bytes: &[u8]) -> File {
        let mut packer = Packer::new(tempfile::tempfile().unwrap()).unwrap();
        bytes.chunks(FRAME).for_each(|chunk| packer.frame(chunk).unwrap());
        packer.finish().unwrap()
    }

    #[test]
    fn ranges_across_frames_are_what_was_written() {
        let bytes: Vec<u8> = (0..=250).cycle().take(3 * FRAME + 17).collect();
        let file = sealed(&bytes);
        for (offset, limit) in [
            (0, 10),
            (FRAME - 1, 2),
            (FRAME, 1),
            (5, 2 * FRAME + 7),
            (3 * FRAME, 1000),
            (3 * FRAME + 17, 5),
            (9 * FRAME, 5),
        ] {
            let want = &bytes[offset.min(bytes.len())..(offset + limit).min(bytes.len())];
            assert_eq!(read(&file, offset as u64, limit).unwrap(), want, "{offset}+{limit}");
        }
        assert_eq!(read(&sealed(b""), 0, 10).unwrap(), b"");
    }

    #[test]
    fn a_damaged_table_is_an_error_not_a_panic() {
        let file = sealed(&[7; 1000]);
        let size = file.metadata().unwrap().len();
        for at in size.saturating_sub(20)..size {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0xff], at).unwrap();
            if let Ok(read) = read(&file, 0, 1000) {
                assert!(read.len() <= 1000);
            }
            file.write_all_at(&byte, at).unwrap();
        }
        file.set_len(size - 1).unwrap();
        assert!(read(&file, 0, 1).is_err());
    }
}
