//! Where flows are recorded, and how much of them: `--store` and what belongs to it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tollgate_store::{CaptureLimits, Place, Store, StoreConfig};

use crate::args::{AuthorityArgs, StoreArgs, StorePlace};
use crate::paths::default_data_dir;
use crate::settings::Purpose;

/// Whether and how flows are recorded.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// `None` for not at all.
    config: Option<StoreConfig>,
    /// Whether somebody asked for it: then it is an error if it can't be had.
    asked_for: bool,
    /// How much of what passes is recorded.
    pub limits: CaptureLimits,
}

impl StoreSettings {
    /// Lowers the arguments.
    ///
    /// # Errors
    /// No folder is known.
    pub fn new(
        args: &StoreArgs,
        authority: &AuthorityArgs,
        purpose: Purpose,
    ) -> anyhow::Result<Self> {
        let by_default = match purpose {
            Purpose::Serve => StorePlace::Disk,
            Purpose::Run => StorePlace::Off,
        };
        // The environment of a shell is for the proxy that runs there; one for a command is asked by flags.
        let counts = |from_env: bool| purpose == Purpose::Serve || !from_env;
        let place = args.store.filter(|_| counts(args.store_from_env));
        let has_folder = args.store_dir.is_some() && counts(args.store_dir_from_env);
        let asked_for = place.is_some() || has_folder;
        let place = match place {
            Some(place) => place,
            None if has_folder => StorePlace::Disk,
            None => by_default,
        };
        let place = match place {
            StorePlace::Off => None,
            StorePlace::Disk => {
                let folder = folder(args.store_dir.as_deref(), authority.data_dir.as_deref())?;
                Some(Place::Disk(folder))
            }
        };
        let config = place.map(|place| {
            let mut config = StoreConfig::new(place);
            config.max_bytes = args.store_max_size.unwrap_or(config.max_bytes);
            config.max_age = Some(args.store_max_age).filter(|age| !age.is_zero());
            config
        });
        let limits = CaptureLimits {
            body_bytes: usize::try_from(args.store_body_limit).unwrap_or(usize::MAX),
            ..CaptureLimits::default()
        };
        Ok(Self {
            config,
            asked_for,
            limits,
        })
    }

    /// The folder, where there is one.
    pub fn folder(&self) -> Option<&Path> {
        match &self.config.as_ref()?.place {
            Place::Disk(folder) => Some(folder),
            Place::Memory => None,
        }
    }

    /// Opens the store. One that nobody asked for and that can't be had is a warning: the proxy works without.
    ///
    /// # Errors
    /// What keeps a store from being opened that was asked for.
    pub fn open(&self) -> anyhow::Result<Option<Store>> {
        let Some(config) = &self.config else {
            return Ok(None);
        };
        match Store::open(config.clone()) {
            Ok(store) => Ok(Some(store)),
            Err(error) if self.asked_for => Err(error)
                .context("flows can't be recorded (--store off does without, --store-dir names another folder)"),
            Err(error) => {
                tracing::warn!(
                    "this proxy doesn't record flows: {error} (--store off says so, --store-dir names another folder)"
                );
                Ok(None)
            }
        }
    }
}

/// The folder of the recorded flows.
///
/// # Errors
/// No home folder is known.
pub fn folder(store_dir: Option<&Path>, data_dir: Option<&Path>) -> anyhow::Result<PathBuf> {
    match (store_dir, data_dir) {
        (Some(folder), _) => Ok(folder.to_owned()),
        (None, Some(data)) => Ok(data.join("flows")),
        (None, None) => Ok(default_data_dir()?.join("flows")),
    }
}
