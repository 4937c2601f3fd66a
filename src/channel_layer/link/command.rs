//! Writes the commands of a subscriber.

use bytes::{BufMut as _, BytesMut};

/// Appends a command as an array of bulk strings.
pub(in crate::channel_layer) fn write_command<'a>(
    arguments: impl Iterator<Item = &'a [u8]> + Clone,
    out: &mut BytesMut,
) {
    let head = |mark: char, len: usize, out: &mut BytesMut| {
        out.put_slice(format!("{mark}{len}\r\n").as_bytes());
    };
    head('*', arguments.clone().count(), out);
    for argument in arguments {
        head('$', argument.len(), out);
        out.put_slice(argument);
        out.put_slice(b"\r\n");
    }
}
