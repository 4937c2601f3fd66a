//! `ca` and `verify` of `[tenants.NAME.users]` beside the TLS options of a database's URL, in the terms of the drivers.

use sqlx::mysql::MySqlSslMode;
use sqlx::postgres::PgSslMode;

use super::url::{DatabaseUrl, DriverOptions};
use crate::config::{Fault, Trust, Verify};
use crate::stores::trust;

impl DatabaseUrl {
    /// Sets the trust in the certificate of the server. The options of the URL stay where `trust` is silent.
    ///
    /// # Errors
    /// The fault of a trust that does not go with the URL, at `ca` or `verify`.
    pub fn trusting(mut self, trust: &Trust) -> Result<Self, Fault> {
        self.agrees_with(trust)?;
        // A `ca` that nothing is verified by would be of no use.
        let implied = (!trust.own.is_empty() && !self.tls.mode).then_some(Verify::Full);
        let verify = trust.verify.or(implied);
        // The environment is of the whole process, so a `ca` for this database takes its place.
        let from_environment = self.tls.from_environment && trust.own.is_empty();
        let own_file = self.tls.authority || from_environment;
        match &mut self.options {
            DriverOptions::Postgres(options, _) => {
                if let Some(verify) = verify {
                    **options = options.clone().ssl_mode(match verify {
                        Verify::Full => PgSslMode::VerifyFull,
                        Verify::Chain => PgSslMode::VerifyCa,
                        Verify::Nothing => PgSslMode::Require,
                    });
                }
                if !own_file && postgres_verifies(options.get_ssl_mode()) {
                    **options = options.clone().ssl_root_cert_from_pem(trust::pem(trust));
                }
            }
            DriverOptions::MySql(options) => {
                if let Some(verify) = verify {
                    **options = options.clone().ssl_mode(match verify {
                        Verify::Full => MySqlSslMode::VerifyIdentity,
                        Verify::Chain => MySqlSslMode::VerifyCa,
                        Verify::Nothing => MySqlSslMode::Required,
                    });
                }
                if !own_file && mysql_verifies(options.get_ssl_mode()) {
                    **options = options.clone().ssl_ca_from_pem(trust::pem(trust));
                }
            }
            DriverOptions::Sqlite(..) => {}
        }
        Ok(self)
    }

    fn agrees_with(&self, trust: &Trust) -> Result<(), Fault> {
        let key = match trust.own.is_empty() {
            true => "verify",
            false => "ca",
        };
        let verifies = match &self.options {
            DriverOptions::Postgres(options, _) => postgres_verifies(options.get_ssl_mode()),
            DriverOptions::MySql(options) => mysql_verifies(options.get_ssl_mode()),
            DriverOptions::Sqlite(..) if trust.is_own() => {
                let expected = "postgres:// or mysql://, which have a link to a server";
                return Err(Fault::new(key, "a SQLite database", expected));
            }
            DriverOptions::Sqlite(..) => return Ok(()),
        };
        if !trust.own.is_empty() && self.tls.authority {
            let found = "a ca beside that of the URL (sslrootcert, ssl-ca)";
            return Err(Fault::new("ca", found, "one of the two"));
        }
        let advice = "take sslmode (ssl-mode) out of the URL: verify = \"full\" is its verify-full";
        let one = |key, found| Err(Fault::new(key, found, "one of the two").advice(advice));
        match self.tls.mode {
            true if trust.verify.is_some() => one("verify", "verify beside the sslmode of the URL"),
            true if !trust.own.is_empty() && !verifies => one(
                "ca",
                "a ca beside an sslmode of the URL that checks no certificate",
            ),
            _ => Ok(()),
        }
    }
}

fn postgres_verifies(mode: PgSslMode) -> bool {
    matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull)
}

fn mysql_verifies(mode: MySqlSslMode) -> bool {
    matches!(mode, MySqlSslMode::VerifyCa | MySqlSslMode::VerifyIdentity)
}
