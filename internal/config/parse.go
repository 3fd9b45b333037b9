package config

import (
	"bytes"
	"reflect"
	"unicode/utf8"
)

const maxFileBytes = 1 << 20

// Parse reads a configuration from data. name stands for the file in messages, and
// data is TOML if it ends in .toml, else YAML.
// env looks up variables, as os.LookupEnv does. What data leaves out has its
// default. The error joins one *Mistake for everything that is wrong, in the
// order of the file; some wrap an *InvalidPriorityError or *InvalidWeightError.
// No error holds a secret. Files named by the configuration are read to check
// them, those of secrets to have them. Safe for concurrent use.
func Parse(name string, data []byte, env func(string) (string, bool)) (*Config, error) {
	cfg, d := parse(name, data, env, readDescriptor)
	if err := d.err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

func parse(name string, data []byte, env func(string) (string, bool), descriptor func(int) (string, error)) (*Config, *decoder) {
	d := &decoder{report: newReport(name), env: env, descriptor: descriptor}
	cfg := Default()
	body := d.document(data, minimal)
	if body == nil {
		return &cfg, d
	}
	cfg.Admin.Listen = "" // its default depends on what is written elsewhere
	d.value("", body, reflect.ValueOf(&cfg).Elem())
	if d.failed[""] {
		return &cfg, d
	}
	cfg.secretFiles = d.files
	cfg.finish()
	cfg.validate(d.report)
	return &cfg, d
}

// document returns the root of data, or reports why there is none; least is the
// least that it must say.
func (d *decoder) document(data []byte, least byFormat) *node {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if len(data) > maxFileBytes {
		d.addf("", "larger than %d bytes; a configuration is never that large", maxFileBytes)
		return nil
	}
	if !utf8.Valid(data) {
		d.addf("", "not UTF-8 text; save the file as UTF-8")
		return nil
	}
	read := d.readYAML
	if isTOML(d.file) {
		read = d.readTOML
	}
	root := read(string(data))
	if root == nil && len(d.mistakes) == 0 {
		d.addf("", "empty; %s", least.in(d.file))
	}
	return root
}
