//! Tokens with a distinctive shape: what Tollgate knows without being told.
//!
//! Written from the providers' public formats. A row is a shape, never a list of known values: what
//! decides is the prefix, the alphabet, the length and, where there is one, the checksum.

use super::finding::{Category, Severity};
use super::verify::{self, Verify};

/// One row of the table.
pub(super) struct Shape {
    pub(super) id: &'static str,
    pub(super) description: &'static str,
    pub(super) category: Category,
    pub(super) severity: Severity,
    /// Group 1, if there is one, is the secret; else the whole match.
    pub(super) pattern: &'static str,
    pub(super) verify: Verify,
}

const fn secret(
    id: &'static str,
    description: &'static str,
    pattern: &'static str,
    verify: Verify,
) -> Shape {
    Shape {
        id,
        description,
        category: Category::Secret,
        severity: Severity::High,
        pattern,
        verify,
    }
}

const fn critical(mut shape: Shape) -> Shape {
    shape.severity = Severity::Critical;
    shape
}

const fn low(mut shape: Shape) -> Shape {
    shape.severity = Severity::Low;
    shape
}

/// The table, sorted by kind of provider.
#[rustfmt::skip]
pub(super) const SHAPES: &[Shape] = &[
    // Clouds.
    secret("aws-access-key-id", "AWS access key id", r"(?-u:\b)((?:AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AROA|AIPA|ANPA|ANVA)[A-Z0-9]{16})(?-u:\b)", verify::aws_key_id),
    low(secret("aws-access-key-id-fragment", "beginning of an AWS access key id", r"(?-u:\b)((?:AKIA|ASIA)[A-Z2-7]{8,15})(?-u:\b)", verify::varied)),
    secret("aws-secret-access-key", "AWS secret access key", r#"(?i)aws_?.{0,20}?(?:secret|private|sk).{0,20}?["'\s:=>,(]{1,6}([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+]|$)"#, verify::varied),
    secret("aws-secret-access-key", "AWS secret access key", r#"(?i)(?:secret[_ .-]?(?:access[_ .-]?)?key|secret).{0,10}?["'\s:=>,(]{1,6}([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+]|$)"#, verify::random),
    secret("aws-session-token", "AWS session token", r"\b((?:IQoJb3JpZ2lu|FwoGZXIvYXdz|FQoGZXIvYXdz)[A-Za-z0-9/+=]{100,})", verify::varied),
    secret("aws-bedrock-key", "Amazon Bedrock API key", r"\b(ABSK[A-Za-z0-9+/]{100,}={0,2}|bedrock-api-key-[A-Za-z0-9+/]{40,}={0,2})", verify::varied),
    secret("aws-mws-token", "Amazon MWS token", r"(amzn\.mws\.[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})", verify::varied),
    secret("aws-appsync-key", "AWS AppSync key", r"\b(da2-[a-z0-9]{26})\b", verify::varied),
    secret("azure-storage-key", "Azure storage or service-bus key", r#"(?i)(?:AccountKey|SharedAccessKey|access_?key)["'\s]{0,3}[=:]["'\s]{0,3}([A-Za-z0-9+/]{43,86}={1,2})"#, verify::varied),
    secret("azure-app-configuration", "Azure App Configuration connection string", r"(?i)Endpoint=https://[a-z0-9.-]+\.azconfig\.io;Id=[^;]{4,60};Secret=([A-Za-z0-9+/=]{30,100})", verify::varied),
    secret("azure-client-secret", "Microsoft Entra client secret", r"(?-u:(?:\b|[^A-Za-z0-9~._-]))([A-Za-z0-9_~.]{3}[78]Q~[A-Za-z0-9_~.-]{31,34})", verify::varied),
    secret("azure-devops-token", "Azure DevOps personal access token", r"\b([A-Za-z0-9]{76}AZDO[A-Za-z0-9]{4})\b", verify::varied),
    secret("azure-sas", "Azure shared access signature", r"(?i)[?&]sig=([A-Za-z0-9%+/]{43,64}(?:%3D|=)?)", verify::random),
    secret("azure-function-key", "Azure Functions key", r"(?i)azurewebsites\.net/.{0,80}[?&]code=([A-Za-z0-9_/+-]{40,60}={0,2})", verify::varied),
    secret("google-api-key", "Google API key", r"\b(AIza[A-Za-z0-9_-]{35})", verify::varied),
    secret("google-oauth-secret", "Google OAuth client secret", r"\b(GOCSPX-[A-Za-z0-9_-]{20,40})", verify::varied),
    secret("google-oauth-token", "Google OAuth access token", r"\b(ya29\.[A-Za-z0-9_-]{20,})", verify::varied),
    secret("google-refresh-token", "Google OAuth refresh token", r"\b(1//0[A-Za-z0-9_-]{40,})", verify::varied),
    critical(secret("gcp-service-account", "Google service account key file", r#""private_key_id"\s*:\s*"([0-9a-f]{40})""#, verify::varied)),
    secret("alibaba-access-key", "Alibaba Cloud access key id", r"\b(LTAI[A-Za-z0-9]{12,24})\b", verify::random),
    secret("tencent-secret-id", "Tencent Cloud secret id", r"\b(AKID[A-Za-z0-9]{32})\b", verify::varied),
    secret("digitalocean-token", "DigitalOcean token", r"\b(do[opr]_v1_[a-f0-9]{64})\b", verify::varied),
    secret("digitalocean-spaces-key", "DigitalOcean Spaces key", r"\b(DO(?:00|80)[A-Z0-9]{16})\b", verify::varied),
    secret("heroku-token", "Heroku API key", r"\b(HRKU-[A-Za-z0-9_-]{30,64})", verify::varied),
    secret("heroku-api-key", "Heroku API key", r#"(?i)heroku[\w.-]{0,20}["'\s]{0,3}[=:>,(]{1,3}["'\s]{0,3}([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"#, verify::varied),
    secret("fly-token", "Fly.io token", r"\b((?:fo1_[A-Za-z0-9_-]{43}|fm[12][ar]?_[A-Za-z0-9+/=_-]{100,}))", verify::varied),
    secret("scaleway-key", "Scaleway access key", r"\b(SCW[A-Z0-9]{17})\b", verify::random),
    secret("yandex-token", "Yandex Cloud token", r"\b(t1\.[A-Za-z0-9_-]{40,}=*\.[A-Za-z0-9_-]{80,}=*|y0_[A-Za-z0-9_-]{50,}|AQVN[A-Za-z0-9_-]{35,38})", verify::random),
    secret("ibm-cloud-key", "IBM Cloud key", r#"(?i)(?:ibm|bluemix|softlayer)[\w.-]{0,20}key["'\s]{0,3}[=:]["'\s]{0,3}([A-Za-z0-9_-]{44})\b"#, verify::varied),
    secret("oracle-ocid-key", "Oracle Cloud session token", r"\b(ST\$[A-Za-z0-9._-]{100,})", verify::varied),
    secret("cloudflare-token", "Cloudflare token", r"\b(v1\.0-[a-f0-9]{24}-[a-f0-9]{146}|cf(?:at|ut|k)_[A-Za-z0-9]{40,})", verify::varied),
    secret("netlify-token", "Netlify token", r"\b(nf[pckou]_[A-Za-z0-9_]{36,})", verify::varied),
    secret("vercel-token", "Vercel token", r"\b(vc[pkair]_[A-Za-z0-9]{24,}|vercel_blob_rw_[A-Za-z0-9_]{20,})", verify::varied),
    secret("render-token", "Render API key", r"\b(rnd_[A-Za-z0-9]{26,40})\b", verify::random),
    secret("railway-or-supabase-token", "Supabase token", r"\b(sb[pv]_[a-f0-9]{40}|sb_secret_[A-Za-z0-9_-]{20,})", verify::varied),
    secret("planetscale-token", "PlanetScale token", r"\b(pscale_(?:tkn|pw|oauth)_[A-Za-z0-9=._-]{32,64})", verify::varied),
    secret("neon-token", "Neon API key", r"\b(napi_[a-z0-9]{40,80}|npg_[A-Za-z0-9]{12,24})\b", verify::random),
    secret("turso-or-upstash-token", "Turso or Upstash token", r"\b(upstash_[A-Za-z0-9]{30,})", verify::varied),

    // Code hosts, registries, build systems.
    secret("github-token", "GitHub token", r"(gh[pousr]_[A-Za-z0-9]{34,255})", verify::crc32_base62),
    low(secret("github-token-fragment", "beginning of a GitHub token", r"\b(gh[pousr]_[A-Za-z0-9]{12,33})(?:[^A-Za-z0-9]|$)", verify::fragment)),
    secret("github-fine-grained-token", "GitHub fine-grained token", r"(github_pat_[A-Za-z0-9_]{36,255})", verify::varied),
    secret("gitlab-token", "GitLab token", r"\b(gl(?:pat|dt|rt|cbt|ptt|ft|agent|oas|soat|imt|ffct|rtr|wt)-[A-Za-z0-9_=.-]{20,})", verify::varied),
    secret("gitlab-runner-token", "GitLab runner registration token", r"\b(GR1348941[A-Za-z0-9_-]{20,})", verify::varied),
    secret("bitbucket-token", "Bitbucket token", r"\b(ATBB[A-Za-z0-9_=.-]{28,}|ATCTT3xFf[A-Za-z0-9_=.-]{50,})", verify::varied),
    secret("atlassian-token", "Atlassian API token", r"\b(AT(?:ATT|OTT|STT)3xFf[A-Za-z0-9_=.-]{50,})", verify::varied),
    secret("npm-token", "npm token", r"\b(npm_[A-Za-z0-9]{36})\b", verify::crc32_base62),
    secret("pypi-token", "PyPI token", r"\b(pypi-(?:AgEIcHlwaS5vcmc|AgENdGVzdC5weXBpLm9yZw)[A-Za-z0-9_-]{20,})", verify::varied),
    secret("pypi-token", "PyPI token", r"\b(pypi-[A-Za-z0-9_-]{60,})", verify::random),
    secret("rubygems-token", "RubyGems key", r"\b(rubygems_[a-f0-9]{48})", verify::varied),
    secret("cratesio-token", "crates.io token", r"\b(cio[A-Za-z0-9]{32})\b", verify::random),
    secret("nuget-key", "NuGet key", r"\b(oy2[a-z0-9]{43})\b", verify::varied),
    secret("clojars-token", "Clojars token", r"\b(CLOJARS_[a-z0-9]{60})\b", verify::varied),
    secret("docker-hub-token", "Docker Hub token", r"\b(dckr_(?:pat|oat)_[A-Za-z0-9_-]{24,40})", verify::varied),
    secret("artifactory-token", "Artifactory token", r"\b(AKCp[A-Za-z0-9]{60,80}|cmVmdGtu[A-Za-z0-9]{50,60})\b", verify::varied),
    secret("circleci-token", "CircleCI token", r"\b(CCI(?:PAT|PRJ)_[A-Za-z0-9]{20,}_[a-f0-9]{40})\b", verify::varied),
    secret("buildkite-token", "Buildkite token", r"\b(bk(?:ua|at|pi)_[a-z0-9]{40,})\b", verify::varied),
    secret("codecov-or-sonar-token", "SonarQube token", r"\b(sq[aup]_[a-f0-9]{40})\b", verify::varied),
    secret("sonar-login", "SonarQube login token", r#"(?i)sonar[\w.]{0,20}(?:login|token)["']?\s{0,2}(?:[=:,(]|\s)\s{0,2}["']{0,2}([a-f0-9]{40})\b"#, verify::varied),
    secret("snyk-or-sourcegraph-token", "Sourcegraph token", r"\b(sgp_(?:[a-fA-F0-9]{16}_|local_)?[a-fA-F0-9]{40,64}|slk_[a-f0-9]{64})\b", verify::varied),
    secret("terraform-token", "HCP Terraform token", r"\b([A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,70})", verify::varied),
    secret("vault-token", "HashiCorp Vault token", r"\b(hv[sbr]\.[A-Za-z0-9_-]{24,})", verify::varied),
    secret("vault-token-legacy", "HashiCorp Vault token", r#"(?i)vault[\w-]{0,20}token["'\s]{0,3}[=:\s]["'\s]{0,3}([sbr]\.[A-Za-z0-9_-]{24,100})"#, verify::varied),
    secret("vault-unseal-key", "HashiCorp Vault unseal key", r"(?i)unseal(?:\s+key)?(?:\s+\d+)?[\s:=]{1,3}([A-Za-z0-9+/]{44}=?|[a-f0-9]{66})", verify::random),
    secret("doppler-token", "Doppler token", r"\b(dp\.(?:ct|pt|sa|scim|audit|st(?:\.[a-z0-9_-]{2,35})?)\.[A-Za-z0-9]{40,44})\b", verify::varied),
    secret("infracost-or-pulumi-token", "Pulumi or Infracost token", r"\b(pul-[a-f0-9]{40}|ico-[A-Za-z0-9]{32})\b", verify::varied),
    secret("1password-token", "1Password service account token", r"\b(ops_eyJ[A-Za-z0-9+/=_-]{100,})", verify::varied),
    secret("1password-secret-key", "1Password secret key", r"\b(A3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})-[A-Z0-9]{5}-[A-Z0-9]{5}-[A-Z0-9]{5})\b", verify::varied),
    secret("dependency-track-key", "Dependency-Track key", r"\b(odt_[A-Za-z0-9_]{30,60})\b", verify::random),
    secret("stackhawk-key", "StackHawk key", r"\b(hawk\.[A-Za-z0-9_-]{20}\.[A-Za-z0-9_-]{20})", verify::varied),
    secret("jfrog-or-nx-token", "Linear key", r"\b(lin_(?:api|oauth)_[A-Za-z0-9]{40,64})\b", verify::varied),

    // Models.
    secret("anthropic-key", "Anthropic API key", r"(sk-ant-[a-z0-9]{2,10}-[A-Za-z0-9_-]{20,})", verify::varied),
    secret("openai-key", "OpenAI API key", r"(sk-(?:proj|svcacct|admin|None)-[A-Za-z0-9_-]{20,})", verify::varied),
    secret("openai-key", "OpenAI API key", r"\b(sk-[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20})", verify::varied),
    secret("generic-sk-key", "API key with the prefix sk-", r"\b(sk-(?:[a-z0-9]{2,12}-){0,3}[A-Za-z0-9]{20,64})\b", verify::random),
    secret("huggingface-token", "Hugging Face token", r"\b(hf_[A-Za-z]{34,40}|api_org_[A-Za-z]{34})\b", verify::varied),
    secret("groq-key", "Groq key", r"\b(gsk_[A-Za-z0-9]{40,56})\b", verify::varied),
    secret("xai-key", "xAI key", r"\b(xai-[A-Za-z0-9]{70,90})\b", verify::varied),
    secret("replicate-token", "Replicate token", r"\b(r8_[A-Za-z0-9]{37})\b", verify::varied),
    secret("perplexity-key", "Perplexity key", r"\b(pplx-[A-Za-z0-9]{40,60})\b", verify::varied),
    secret("fireworks-key", "Fireworks key", r"\b(fw_[A-Za-z0-9]{22,32})\b", verify::random),
    secret("pinecone-key", "Pinecone key", r"\b(pcsk_[A-Za-z0-9_]{50,80})", verify::varied),
    secret("tavily-key", "Tavily key", r"\b(tvly-(?:dev-|prod-)?[A-Za-z0-9_-]{32,})\b", verify::varied),
    secret("jina-key", "Jina key", r"\b(jina_[A-Za-z0-9_-]{50,70})", verify::varied),
    secret("firecrawl-key", "Firecrawl key", r"\b(fc-[a-f0-9]{32})\b", verify::varied),
    secret("langsmith-key", "LangSmith key", r"\b(lsv2_(?:pt|sk)_[a-f0-9]{32}_[a-f0-9]{10}|ls__[a-f0-9]{32})\b", verify::varied),
    secret("langfuse-key", "Langfuse key", r"\b(sk-lf-[a-f0-9]{8}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{12})\b", verify::varied),
    secret("nvidia-key", "NVIDIA API key", r"\b(nvapi-[A-Za-z0-9_-]{50,80})", verify::varied),
    secret("weights-and-biases-key", "Weights & Biases key", r"\b(wandb_v1_[A-Za-z0-9_]{40,90})\b", verify::varied),
    secret("elevenlabs-key", "ElevenLabs key", r"\b(sk_[a-f0-9]{48})\b", verify::varied),
    secret("kagi-key", "Kagi key", r"(?i)kagi.{0,40}?([A-Za-z0-9_-]{10,12}\.[A-Za-z0-9_-]{43})", verify::random),
    secret("e2b-key", "E2B key", r"\b(e2b_[a-f0-9]{40})\b", verify::varied),

    // Talk.
    secret("slack-token", "Slack token", r"(xox[abeoprs]-(?:[0-9A-Za-z]-)?[0-9A-Za-z-]{20,})", verify::varied),
    secret("slack-token", "Slack token", r"(xoxe\.xox[bp]-\d-[A-Za-z0-9]{100,}|xox[bpasr]-[0-9]{8,}[0-9A-Za-z-]{8,})", verify::varied),
    secret("slack-app-token", "Slack app token", r"(xapp-[0-9A-Za-z/-]{20,})", verify::varied),
    secret("slack-webhook", "Slack webhook", r"(hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9+/_-]{24,})", verify::varied),
    secret("discord-webhook", "Discord webhook", r"(discord(?:app)?\.com/api/(?:v\d+/)?webhooks/\d{15,20}/[A-Za-z0-9_-]{50,})", verify::varied),
    secret("discord-bot-token", "Discord bot token", r"(?i)\b(?:discord|bot)[\w .-]{0,30}[\x22\x27\s:=]{1,6}((?-i:[MNO])[A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38})\b", verify::random),
    secret("teams-webhook", "Microsoft Teams webhook", r"(?i)((?:outlook\.office(?:365)?\.com/webhook(?:b2)?|[a-z0-9-]+\.webhook\.office\.com/webhookb2)/[0-9a-f-]{36}@[0-9a-f-]{36}/IncomingWebhook/[0-9a-f]{32}/[0-9a-f-]{36})", verify::varied),
    secret("telegram-bot-token", "Telegram bot token", r"\b([0-9]{8,10}:AA[A-Za-z0-9_-]{32,34})", verify::varied),
    secret("twilio-key", "Twilio API key", r"\b(SK[0-9a-f]{32})\b", verify::random),
    secret("sendgrid-key", "SendGrid key", r"\b(SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64})", verify::varied),
    low(secret("sendgrid-key-fragment", "beginning of a SendGrid key", r"\b(SG\.[A-Za-z0-9_-]{20,32})(?:[^A-Za-z0-9_.-]|$)", verify::varied)),
    secret("mailgun-key", "Mailgun key", r"\b(key-[0-9a-f]{32})\b", verify::varied),
    secret("mailchimp-key", "Mailchimp key", r"\b([0-9a-f]{32}-us[0-9]{1,2})\b", verify::random),
    secret("brevo-key", "Brevo key", r"\b(xkeysib-[a-f0-9]{64}-[A-Za-z0-9]{16}|xsmtpsib-[a-f0-9]{64}-[A-Za-z0-9]{16})\b", verify::varied),
    secret("resend-key", "Resend key", r"\b(re_[A-Za-z0-9]{6,10}_[A-Za-z0-9]{20,28})\b", verify::varied),
    secret("intercom-or-notion-token", "Notion token", r"\b(ntn_[0-9]{10,12}[A-Za-z0-9]{35,40}|secret_[A-Za-z0-9]{43})\b", verify::random),
    secret("figma-token", "Figma token", r"\b(figd_[A-Za-z0-9_-]{36,44})", verify::varied),
    secret("figma-token-legacy", "Figma token", r"(?i)figma.{0,20}?\b([0-9]{4,6}-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\b", verify::varied),
    secret("airtable-token", "Airtable token", r"\b(pat[A-Za-z0-9]{14}\.[a-f0-9]{64})\b", verify::varied),
    secret("typeform-token", "Typeform token", r"\b(tfp_[A-Za-z0-9_.=-]{59})", verify::varied),
    secret("zapier-or-make-webhook", "Zapier webhook", r"(hooks\.zapier\.com/hooks/catch/[0-9]{5,9}/[a-z0-9]{5,10})", verify::varied),
    secret("facebook-token", "Facebook access token", r"\b(EAA[A-Za-z0-9]{60,255})\b", verify::random),
    secret("twitch-stream-key", "Twitch stream key", r"\b(live_[0-9]{6,12}_[A-Za-z0-9]{26,34})\b", verify::varied),
    secret("dropbox-token", "Dropbox token", r"\b(sl\.(?:u\.)?[A-Za-z0-9_-]{60,})", verify::random),
    secret("twitter-bearer", "X bearer token", r"\b(A{20,24}[A-Za-z0-9%]{60,110})", verify::random),
    secret("adobe-secret", "Adobe client secret", r"\b(p8e-[a-z0-9-]{32})\b", verify::varied),

    // Money.
    secret("stripe-key", "Stripe key", r"\b([sr]k_(?:live|test|prod)_[A-Za-z0-9_]{14,247})\b", verify::varied),
    secret("stripe-webhook-secret", "Stripe webhook secret", r"\b(whsec_[A-Za-z0-9+/=]{24,64})", verify::varied),
    secret("square-token", "Square token", r"\b((?:sandbox-)?sq0(?:atp|atb|csp|csb)-[A-Za-z0-9_-]{22,43}|EAAA[lE][A-Za-z0-9_-]{58,62})", verify::varied),
    secret("shopify-token", "Shopify token", r"\b(shp(?:at|ca|pa|ss|tka|rt|ua|ss)_[A-Fa-f0-9]{32})\b", verify::varied),
    secret("braintree-token", "Braintree token", r"(access_token\$(?:production|sandbox)\$[0-9a-z]{16}\$[0-9a-f]{32})", verify::varied),
    secret("plaid-token", "Plaid token", r"\b((?:access|public|link)-(?:sandbox|development|production)-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\b", verify::varied),
    secret("flutterwave-or-paystack-key", "Flutterwave key", r"\b(FLWSECK(?:_TEST)?-[A-Za-z0-9]{12,40}(?:-X)?)", verify::varied),
    secret("razorpay-key", "Razorpay key", r"\b(rzp_(?:live|test)_[A-Za-z0-9]{14})\b", verify::varied),
    secret("adyen-key", "Adyen API key", r"\b(AQE[A-Za-z0-9]{3}[A-Za-z0-9+/]{80,}=*-[A-Za-z0-9+/=]{40,}-[A-Za-z0-9]{10,})", verify::varied),
    secret("checkout-or-lob-key", "Lob key", r"\b((?:live|test)_(?:pub_)?[a-f0-9]{31,35})\b", verify::varied),

    // Watching.
    secret("datadog-key", "Datadog key", r#"(?i)(?:datadog|dd)[_-](?:api|app(?:lication)?)[_-]?key["'\s]{0,3}[=:]["'\s]{0,3}([a-f0-9]{32,40})\b"#, verify::varied),
    secret("datadog-token", "Datadog token", r"\b(dd(?:app|pat|apikey|rum)_[A-Za-z0-9_]{30,})", verify::random),
    secret("newrelic-key", "New Relic key", r"\b(NR(?:AK|AA|II|IQ|RA|JS|SP)-[A-Za-z0-9_-]{19,42})", verify::varied),
    secret("newrelic-license", "New Relic licence key", r"\b([A-Fa-f0-9]{36}NRAL)\b", verify::varied),
    secret("newrelic-license", "New Relic licence key", r#"(?i)(?:new[_ -]?relic.{0,60}|license)_?key["'\s]{0,3}[=:]["'\s]{0,3}([a-f0-9]{40}|[A-Za-z0-9]{36}NRAL)\b"#, verify::random),
    secret("pixie-key", "Pixie key", r"\b(px-(?:api|dep)-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\b", verify::varied),
    secret("grafana-token", "Grafana token", r"\b(gl(?:sa|c)_[A-Za-z0-9_+/=-]{32,}|eyJrIjoi[A-Za-z0-9_-]{40,}={0,2})", verify::grafana),
    secret("dynatrace-token", "Dynatrace token", r"\b(dt0[a-z]{1}[0-9]{2}\.[A-Z0-9]{8,24}\.[A-Z0-9]{64})\b", verify::varied),
    secret("sentry-token", "Sentry token", r"\b(sntry[su]_[A-Za-z0-9+/=_-]{40,})", verify::varied),
    secret("honeycomb-or-rollbar-key", "Honeycomb key", r"\b(hc[abcdefghijk]i[kc]_[A-Za-z0-9]{58})\b", verify::varied),
    secret("postman-key", "Postman key", r"\b(PMA[KT]-[A-Za-z0-9]{24}-[A-Za-z0-9]{34})\b", verify::varied),
    secret("posthog-key", "PostHog personal key", r"\b(phx_[A-Za-z0-9_]{40,60})\b", verify::varied),
    secret("launchdarkly-key", "LaunchDarkly key", r"\b((?:sdk|api|mob)-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\b", verify::varied),
    secret("segment-token", "Segment token", r"\b(sgp_[A-Za-z0-9]{64})\b", verify::varied),
    secret("adafruit-key", "Adafruit IO key", r"\b(aio_[A-Za-z0-9]{28})\b", verify::varied),
    secret("databricks-token", "Databricks token", r"\b(dapi[a-f0-9]{32}(?:-\d)?|dose[a-f0-9]{32}|dkea[a-f0-9]{32})\b", verify::varied),
    secret("algolia-or-mapbox-token", "Mapbox token", r"\b([spt]k\.eyJ[A-Za-z0-9_-]{30,}\.[A-Za-z0-9_-]{15,})", verify::varied),
    secret("salesforce-session", "Salesforce session", r"\b(00D[A-Za-z0-9]{12,15}![A-Za-z0-9._]{60,})", verify::varied),
    secret("okta-token", "Okta API token", r#"(?i)okta.{0,30}?["'\s]{0,2}[=:]["'\s]{0,3}(00[A-Za-z0-9_-]{39}[A-Za-z0-9_])(?:[^A-Za-z0-9_-]|$)"#, verify::okta),
    secret("teamcity-token", "TeamCity token", r"\b(eyJ0eXAiOiAiVENWMiJ9\.[A-Za-z0-9_-]{36}\.[A-Za-z0-9_-]{40,60})", verify::varied),
    secret("thingsboard-token", "ThingsBoard device token", r"(?i)thingsboard\.[a-z.]+/api/v1/([a-z0-9]{20})/", verify::random),
    secret("truenas-key", "TrueNAS key", r"(?i)(?:bearer |api_?key[\x22\x27\s:=,\[]{1,12}|params[\x22\x27\s:]{1,6}\[\s{0,3}[\x22\x27])([0-9]{1,3}-[A-Za-z0-9]{64})\b", verify::random),
    secret("age-secret-key", "age identity", r"\b(AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58})\b", verify::varied),
    secret("azure-openai-or-search-key", "Azure subscription key", r#"(?i)(?:ocp-apim-subscription-key|api-key)["'\s]{0,3}:["'\s]{0,3}([a-f0-9]{32}|[A-Za-z0-9]{84})\b"#, verify::varied),

    // Keys and structured tokens.
    critical(secret("private-key", "private key (PEM)", r"(-----BEGIN (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:[\s\\rntu0-9a-f'+,>|-]{0,40})[A-Za-z0-9+/=:, \s\\'+-]{16,})", verify::private_key)),
    critical(secret("private-key-base64", "private key (PEM in base64)", r"\b(LS0tLS1CRUdJTi(?:BSU0Eg|BQUklWQVRF|BPUEVOU1NI|BFQyBQUklWQVRF|BFTkNSWVBURUQ|BEU0Eg)[A-Za-z0-9+/=_-]{40,})", verify::varied)),
    secret("putty-private-key", "PuTTY private key", r"(PuTTY-User-Key-File-\d: [a-z0-9-]{4,40})", verify::varied),
    secret("jwt", "JSON Web Token", r"(eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]{4,})?)", verify::jwt),
    secret("jwt-encrypted", "encrypted JSON Web Token", r"(eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{0,400}\.[A-Za-z0-9_-]{12,24}\.[A-Za-z0-9_-]{20,})", verify::jwt),
    secret("http-basic", "HTTP Basic credentials", r"(?i)\bbasic[\s:]{1,2}([A-Za-z0-9+/]{8,200}={0,2})", verify::basic_credentials),
    secret("http-bearer", "HTTP bearer token", r#"(?i)\b(?:bearer|authorization["']?:\s{0,2}["']?token)[\s:]{1,3}["']?([A-Za-z0-9_.~+/=-]{20,512})"#, verify::random),
    secret("url-credentials", "credentials in a URL", r#"\b[a-zA-Z][a-zA-Z0-9+.-]{1,24}://[^\s:@/'"<>?#]{0,60}:([^\s@'"<>/]{3,120})@[^\s'"<>/:]{1,100}"#, verify::url_password),
    secret("netrc", "password in a netrc entry", r"(?i)\bmachine\s{1,4}\S{3,100}\s{1,10}login\s{1,4}\S{1,80}\s{1,10}password\s{1,4}(\S{3,100})", verify::password),
    secret("wireguard-key", "WireGuard key", r"(?i)(?:PrivateKey|PresharedKey)\s{0,3}=\s{0,3}([A-Za-z0-9+/]{43}=)", verify::varied),
    secret("kubernetes-bootstrap-token", "Kubernetes bootstrap token", r#"(?i)(?:bootstrap.{0,3}token|kubeadm.{0,40}token)["'\s]{0,3}[=:\s]["'\s]{0,3}([a-z0-9]{6}\.[a-z0-9]{16})\b"#, verify::varied),
    secret("kubernetes-bootstrap-secret", "Kubernetes bootstrap token secret", r"(?i)token-secret\s{0,2}[=:]\s{0,2}([a-z0-9]{16})\b", verify::random),
    secret("dotnet-credential", "credential in .NET code", r#"(?i)(?:NetworkCredential|DirectoryEntry)\s{0,2}\((?:[^"()]{0,4}"[^"]{1,120}",\s{0,20}){1,2}"([^"]{3,100})""#, verify::password),
    secret("docker-config-auth", "registry credentials in a Docker config", r#""auth"\s{0,2}:\s{0,2}"([A-Za-z0-9+/]{12,400}={0,2})""#, verify::basic_credentials),
    secret("oauth2-client-credentials", "OAuth client credentials on a command line", r"(?i)\bcurl\b.{0,200}?\s(?:-u|--user)[\s=]{0,2}['\x22]?([^\s:'\x22$<{]{1,80}:[^\s'\x22$<{]{6,120})", verify::user_password),
    secret("sshpass", "password on a command line", r"(?i)\bsshpass\s{1,3}-p\s{0,3}['\x22]?([^\s'\x22$]{4,80})", verify::password),
    secret("powershell-password", "password on a command line", r"(?i)\b(?:psexec(?:64)?(?:\.exe)?|connect-viserver|net\s+use)\b.{0,120}?\s-(?:p|password)\s{1,3}['\x22]?([^\s'\x22]{4,80})", verify::any),
    secret("blynk-token", "Blynk token", r"(?i)blynk\.cloud/\S{0,80}token=([A-Za-z0-9_-]{32})", verify::varied),
    secret("prefixed-token", "token with a vendor's prefix", r"\b([a-z][a-z0-9]{1,9}[_-](?:live|test|prod|production|sandbox|api|key|pat|sk|secret|token|oauth|access|refresh|admin|svc|v[0-9])[_-][A-Za-z0-9]{20,80})\b", verify::random_after_prefix),
];
