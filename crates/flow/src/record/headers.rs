use bytes::Bytes;
use tollgate_wire::headers::HeaderList;

/// Header fields as somebody recorded them, in order.
///
/// Unlike [`HeaderList`], which is made for the wire, it takes any bytes: recordings hold what other programs let through.
/// Names compare without regard to ASCII case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderFields(pub Vec<(Bytes, Bytes)>);

impl HeaderFields {
    /// No field.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field at the end.
    pub fn push(&mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.0.push((name.into(), value.into()));
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&name[..], &value[..]))
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The values of a name, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter()
            .filter(move |(field, _)| field.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// All values of a name, joined by `, ` (RFC 9110 section 5.2).
    pub fn joined(&self, name: &str) -> Option<Vec<u8>> {
        let mut values = self.get_all(name);
        let mut joined = values.next()?.to_vec();
        for value in values {
            joined.extend_from_slice(b", ");
            joined.extend_from_slice(value);
        }
        Some(joined)
    }

    /// Removes all fields of a name; answers whether there were any.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0
            .retain(|(field, _)| !field.eq_ignore_ascii_case(name.as_bytes()));
        self.0.len() < before
    }

    /// Gives a name one value: the first field keeps its place and spelling, further ones go; without one, a field is
    /// added.
    pub fn set(&mut self, name: &str, value: impl Into<Bytes>) {
        let mut value = Some(value.into());
        self.0.retain_mut(|(field, slot)| {
            if !field.eq_ignore_ascii_case(name.as_bytes()) {
                return true;
            }
            match value.take() {
                Some(value) => {
                    *slot = value;
                    true
                }
                None => false,
            }
        });
        if let Some(value) = value {
            self.push(Bytes::copy_from_slice(name.as_bytes()), value);
        }
    }

    /// Appends the fields as `Name: value` lines with CRLF, without the empty line that ends a head.
    pub fn write_block(&self, out: &mut Vec<u8>) {
        for (name, value) in self.iter() {
            write_line(name, value, out);
        }
    }
}

pub(crate) fn write_line(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// One copy of all bytes, shared by the fields.
impl From<&HeaderList> for HeaderFields {
    fn from(list: &HeaderList) -> Self {
        let size = list.iter().map(|(name, value)| name.len() + value.len());
        let mut all = Vec::with_capacity(size.sum());
        for (name, value) in list.iter() {
            all.extend_from_slice(name);
            all.extend_from_slice(value);
        }
        let mut rest = Bytes::from(all);
        let fields = list
            .iter()
            .map(|(name, value)| (rest.split_to(name.len()), rest.split_to(value.len())));
        Self(fields.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_order_spelling_and_duplicates() {
        let mut list = HeaderList::new();
        list.append(b"Host", b"a").unwrap();
        list.append(b"X-A", b"1").unwrap();
        list.append(b"x-a", b"").unwrap();
        let mut fields = HeaderFields::from(&list);
        assert_eq!(fields.len(), 3);
        assert_eq!(fields.joined("X-a").as_deref(), Some(&b"1, "[..]));
        let mut block = Vec::new();
        fields.write_block(&mut block);
        assert_eq!(block, b"Host: a\r\nX-A: 1\r\nx-a: \r\n");

        fields.set("x-A", "2");
        fields.set("New", "3");
        assert_eq!(
            fields.iter().collect::<Vec<_>>(),
            [(&b"Host"[..], &b"a"[..]), (b"X-A", b"2"), (b"New", b"3")]
        );
        assert!(fields.remove("host"));
        assert!(!fields.remove("host"));
    }
}
