"""Facts about models, devices and file types, as TOML. Data only; nothing here decides."""
