//! The connections that carried a flow: written once for all flows that they carried.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use tollgate_flow::mitm::{FlowReader, FlowWriter};
use tollgate_flow::record::{
    Certificates, ClientConnection, Content, Facts, Record, ServerConnection, Timestamp,
};
use tollgate_flow::{ConnectionInfo, Flow, HttpVersion, Scheme, Target, UpstreamInfo};

/// How many links are remembered from one block to the next. When there are more, all are forgotten.
const REMEMBERED: usize = 1024;

/// The connections of a flow, as its worker knows them.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    connection: Arc<ConnectionInfo>,
    upstream: Option<Arc<UpstreamInfo>>,
    target: Target,
    scheme: Scheme,
    is_quic: bool,
    /// How much was known of the client's TLS: it may become more.
    tls: u8,
}

impl Link {
    fn of(flow: &Flow) -> Self {
        Self {
            connection: Arc::clone(&flow.connection),
            upstream: flow.upstream.clone(),
            target: flow.request.target.clone(),
            scheme: flow.request.scheme,
            is_quic: is_quic(flow),
            tls: tls(&flow.connection),
        }
    }

    fn carried(&self, flow: &Flow) -> bool {
        let upstream = match (&self.upstream, &flow.upstream) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        upstream
            && Arc::ptr_eq(&self.connection, &flow.connection)
            && self.scheme == flow.request.scheme
            && self.target == flow.request.target
            && self.is_quic == is_quic(flow)
            && self.tls == tls(&flow.connection)
    }

    fn is(&self, other: &Self) -> bool {
        let upstream = match (&self.upstream, &other.upstream) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        upstream
            && Arc::ptr_eq(&self.connection, &other.connection)
            && self.scheme == other.scheme
            && self.target == other.target
            && self.is_quic == other.is_quic
            && self.tls == other.tls
    }

    /// What every flow that it carried has in common.
    fn context(&self) -> Context {
        let mut flow = Flow::new(Arc::clone(&self.connection));
        flow.upstream.clone_from(&self.upstream);
        flow.request.target = self.target.clone();
        flow.request.scheme = self.scheme;
        if self.is_quic {
            flow.request.version = HttpVersion::Http3;
        }
        let record = Record::from_flow(&flow, None);
        Context {
            client: record.client,
            server: record.server,
            facts: record.facts,
            is_unconnected: self.upstream.is_none(),
        }
    }
}

fn is_quic(flow: &Flow) -> bool {
    flow.request.version == HttpVersion::Http3
}

fn tls(connection: &ConnectionInfo) -> u8 {
    match connection.tls() {
        None => 0,
        Some(tls) if tls.version().is_none() => 1,
        Some(_) => 2,
    }
}

fn hash(
    hasher: &DefaultHashBuilder,
    connection: &Arc<ConnectionInfo>,
    upstream: Option<&Arc<UpstreamInfo>>,
    target: &Target,
) -> u64 {
    let mut state = hasher.build_hasher();
    Arc::as_ptr(connection).hash(&mut state);
    upstream.map(Arc::as_ptr).hash(&mut state);
    target.port.hash(&mut state);
    target.host.hash(&mut state);
    state.finish()
}

/// The links of a batch of flows, each once.
#[derive(Debug, Default)]
pub(crate) struct Links {
    all: Vec<Link>,
    known: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Links {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// The number of the link that carried a flow.
    pub fn number(&mut self, flow: &Flow) -> u32 {
        let request = &flow.request;
        let upstream = flow.upstream.as_ref();
        let hash_of = hash(&self.hasher, &flow.connection, upstream, &request.target);
        let is_it = |at: &u32| {
            let link = self.all.get(*at as usize);
            link.is_some_and(|link| link.carried(flow))
        };
        if let Some(at) = self.known.find(hash_of, is_it) {
            return *at;
        }
        let at = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.push(Link::of(flow));
        let (all, hasher) = (&self.all, &self.hasher);
        self.known.insert_unique(hash_of, at, |at| {
            all.get(*at as usize).map_or(0, |link| {
                hash(
                    hasher,
                    &link.connection,
                    link.upstream.as_ref(),
                    &link.target,
                )
            })
        });
        at
    }

    /// Takes them all; the next one is number 0 again.
    pub fn take(&mut self) -> Vec<Link> {
        self.known.clear();
        std::mem::take(&mut self.all)
    }
}

/// A link as it stands in a block, but for its certificates.
#[derive(Debug)]
pub(crate) struct WrittenLink {
    pub is_unconnected: bool,
    pub chain: Option<Arc<[Vec<u8>]>>,
    pub scheme: &'static str,
    pub host: String,
    pub port: u16,
    /// A flow file with one flow that has no content.
    pub file: Vec<u8>,
}

/// The links that were written lately: a connection outlives many blocks.
#[derive(Debug, Default)]
pub(crate) struct LinkCache {
    links: Vec<(Link, Arc<WrittenLink>)>,
    known: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl LinkCache {
    pub fn written(&mut self, link: Link) -> Arc<WrittenLink> {
        let of = |link: &Link, hasher: &DefaultHashBuilder| {
            hash(
                hasher,
                &link.connection,
                link.upstream.as_ref(),
                &link.target,
            )
        };
        let hash_of = of(&link, &self.hasher);
        let is_it = |at: &u32| {
            let known = self.links.get(*at as usize);
            known.is_some_and(|(known, _)| known.is(&link))
        };
        let found = self.known.find(hash_of, is_it);
        if let Some((_, written)) = found.and_then(|at| self.links.get(*at as usize)) {
            return Arc::clone(written);
        }
        if self.links.len() >= REMEMBERED {
            self.links.clear();
            self.known.clear();
        }
        let written = Arc::new(link.context().write());
        let at = u32::try_from(self.links.len()).unwrap_or(u32::MAX);
        self.links.push((link, Arc::clone(&written)));
        let (links, hasher) = (&self.links, &self.hasher);
        self.known.insert_unique(hash_of, at, |at| {
            links
                .get(*at as usize)
                .map_or(0, |(link, _)| of(link, hasher))
        });
        written
    }
}

/// What a record says of the connections that carried it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Context {
    pub client: ClientConnection,
    pub server: ServerConnection,
    pub facts: Facts,
    /// There was no connection to an origin: each flow has one of its own that never was.
    pub is_unconnected: bool,
}

impl Context {
    /// The scheme of its requests.
    pub fn scheme(&self) -> &'static str {
        match self.server.common.tls {
            true => "https",
            false => "http",
        }
    }

    pub fn write(self) -> WrittenLink {
        let scheme = self.scheme();
        let target = self.server.address.clone();
        let (host, port) = target.map_or_else(Default::default, |to| (to.host, to.port));
        let mut stub = Record::new("", Timestamp::default(), Content::Tcp(Vec::new()));
        stub.client = self.client;
        stub.server = self.server;
        stub.facts = self.facts;
        let chain = match std::mem::take(&mut stub.server.common.certificates) {
            Certificates::Der(chain) if !chain.is_empty() => Some(chain),
            others => {
                stub.server.common.certificates = others;
                None
            }
        };
        let mut writer = FlowWriter::new(Vec::new());
        // Writing to memory can't fail.
        let _ = writer.write(&stub);
        WrittenLink {
            is_unconnected: self.is_unconnected,
            chain,
            scheme,
            host,
            port,
            file: writer.into_inner(),
        }
    }

    /// Reads one, whose certificates stand elsewhere.
    pub fn read(is_unconnected: bool, chain: Option<Arc<[Vec<u8>]>>, file: &[u8]) -> Option<Self> {
        let mut stub = FlowReader::new(file).next()?.ok()?;
        if let Some(chain) = chain {
            stub.server.common.certificates = Certificates::Der(chain);
        }
        Some(Self {
            client: stub.client,
            server: stub.server,
            facts: stub.facts,
            is_unconnected,
        })
    }
}
