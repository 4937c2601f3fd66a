//! Parses the PROXY protocol, versions 1 and 2, with which a load balancer writes the client's address before the
//! request (haproxy, `doc/proxy-protocol.txt`). It does no input or output.

use std::net::{IpAddr, SocketAddr};

/// The first twelve bytes of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1, line end included (section 2.1 of the specification).
const MAX_LINE: usize = 107;

/// The longest accepted header of version 2: addresses and type-length-values. Load balancers send a few dozen bytes, or
/// some hundred with the name in a TLS client's certificate.
const MAX_BINARY: usize = 2048;

/// A complete header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProxyHeader {
    /// The client of the load balancer; `None` if it speaks for itself (a health check) or does not know the client.
    pub source: Option<SocketAddr>,
    /// The bytes of the header; the request follows them.
    pub len: usize,
}

/// The bytes do not begin with a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotProxied;

/// Parses the header at the start of `bytes`. Returns `None` while it is incomplete but valid so far.
///
/// # Errors
/// [`NotProxied`] as soon as no further byte could make it a header.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, NotProxied> {
    let start = &bytes[..bytes.len().min(SIGNATURE.len())];
    if SIGNATURE.starts_with(start) {
        return match bytes.len() {
            0..16 => Ok(None),
            _ => parse_binary(bytes),
        };
    }
    if b"PROXY ".starts_with(&bytes[..bytes.len().min(6)]) {
        return parse_line(bytes);
    }
    Err(NotProxied)
}

/// Parses version 1: `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n`.
fn parse_line(bytes: &[u8]) -> Result<Option<ProxyHeader>, NotProxied> {
    let window = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if window.len() < MAX_LINE {
            Ok(None)
        } else {
            Err(NotProxied)
        };
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| NotProxied)?;
    let words: Vec<&str> = line.split(' ').collect();
    let source = match words[..] {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", family @ ("TCP4" | "TCP6"), source, _, port, _] => {
            let ip: IpAddr = source.parse().map_err(|_| NotProxied)?;
            if ip.is_ipv4() != (family == "TCP4") {
                return Err(NotProxied);
            }
            Some(SocketAddr::new(ip, port.parse().map_err(|_| NotProxied)?))
        }
        _ => return Err(NotProxied),
    };
    Ok(Some(ProxyHeader {
        source,
        len: end + 2,
    }))
}

/// Parses version 2; `bytes` holds at least 16 bytes.
fn parse_binary(bytes: &[u8]) -> Result<Option<ProxyHeader>, NotProxied> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    let (command, family) = (bytes[12], bytes[13]);
    let len = 16 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if !matches!(command, LOCAL | PROXY) || len > MAX_BINARY {
        return Err(NotProxied);
    }
    let Some(addresses) = bytes.get(16..len) else {
        return Ok(None);
    };
    let source = match (command, family) {
        (LOCAL, _) => None,
        // TCP over IPv4, TCP over IPv6: source, destination, source port, destination port.
        (_, 0x11) => Some(source_address::<4>(addresses)?),
        (_, 0x21) => Some(source_address::<16>(addresses)?),
        _ => None,
    };
    Ok(Some(ProxyHeader { source, len }))
}

/// Parses a block of source, destination, source port and destination port, with addresses of `N` bytes.
fn source_address<const N: usize>(addresses: &[u8]) -> Result<SocketAddr, NotProxied>
where
    IpAddr: From<[u8; N]>,
{
    let (&source, rest) = addresses.split_first_chunk::<N>().ok_or(NotProxied)?;
    let (_, rest) = rest.split_first_chunk::<N>().ok_or(NotProxied)?;
    let (&port, rest) = rest.split_first_chunk::<2>().ok_or(NotProxied)?;
    if rest.len() < 2 {
        return Err(NotProxied);
    }
    Ok(SocketAddr::new(
        IpAddr::from(source),
        u16::from_be_bytes(port),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend((rest.len() as u16).to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn lines_of_version_1() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\nGET / ";
        let header = parse(line).unwrap().unwrap();
        assert_eq!(header.source, Some("192.0.2.1:56324".parse().unwrap()));
        assert_eq!(&line[header.len..], b"GET / ");
        let six = b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n";
        let source = parse(six).unwrap().unwrap().source;
        assert_eq!(source, Some("[2001:db8::1]:1".parse().unwrap()));
        assert_eq!(parse(b"PROXY UNKNOWN\r\n").unwrap().unwrap().source, None);
    }

    #[test]
    fn headers_of_version_2() {
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb, 3, 0, 0];
        let bytes = binary(0x21, 0x11, &four);
        let header = parse(&bytes).unwrap().unwrap();
        assert_eq!(header.source, Some("192.0.2.1:56324".parse().unwrap()));
        assert_eq!(header.len, bytes.len());
        let mut six = [0; 36];
        six[15] = 1;
        let source = parse(&binary(0x21, 0x21, &six)).unwrap().unwrap().source;
        assert_eq!(source, Some("[::1]:0".parse().unwrap()));
        // A balancer that speaks for itself: family and addresses do not count.
        for family in [0, 0x11, 0x55] {
            let local = parse(&binary(0x20, family, &[])).unwrap().unwrap();
            assert_eq!(local.source, None);
        }
    }

    #[test]
    fn every_beginning_of_a_header_waits_for_the_rest() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".to_vec();
        for whole in [line, binary(0x21, 0x11, &[0; 12])] {
            for end in 0..whole.len() {
                assert_eq!(parse(&whole[..end]), Ok(None), "{end}");
            }
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let long = format!("PROXY TCP4 {}", "1".repeat(200));
        for bad in [
            b"GET / HTTP/1.1\r\n".as_slice(),
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 x 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            long.as_bytes(),
            &binary(0x11, 0x11, &[0; 12]),
            &binary(0x21, 0x11, &[0; 11]),
            &binary(0x21, 0x11, &[0; 4000]),
        ] {
            assert_eq!(parse(bad), Err(NotProxied), "{bad:?}");
        }
    }
}
