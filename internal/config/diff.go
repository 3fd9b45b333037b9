package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"cc-relay/internal/auth"
	"cc-relay/internal/keypool"
	"cc-relay/internal/secret"
)

// Change is one setting that differs between two configurations. No part of it holds
// a secret.
type Change struct {
	// Path names the setting. Providers, keys and clients are named as they are, by
	// name or ID: providers[anthropic].keys[1f3a5c7e9b0d].weight.
	Path string
	// From and To are the values. An entry that comes or goes is absent or present on
	// the other side, a setting that was left out is default, and a secret is [redacted],
	// on both sides if it is another one.
	From, To string
	// Restart says that a reload does not apply the change: only a restart does.
	Restart bool
}

// restartOnly are the settings, or groups of them, that a reload does not apply, and why.
var restartOnly = map[string]string{
	"server.listen":                        "open connections belong to the listener",
	"server.state":                         "what is learned is restored at the start, and its directory is locked",
	"server.state_dir":                     "as server.state",
	"server.tls":                           "as server.listen; what the files hold is read again",
	"server.limits.header_bytes":           "these four belong to the HTTP server, which is made at the start",
	"server.limits.header_time":            "as header_bytes",
	"server.limits.streams_per_connection": "as header_bytes",
	"server.limits.idle_connection":        "as header_bytes",
	"admin":                                "its listener and what it lets in are made at the start",
	"logging.format":                       "the writer is made at the start",
	"metrics":                              "counts begin at the start",
	"tracing":                              "the exporter has requests under way",
}

// Diff returns what differs between two configurations, in the order of the fields;
// nil is nothing. A list whose order counts and has changed is a change of its own. The
// contents of the files that they name are not looked at.
func Diff(old, new *Config) []Change {
	d := &differ{}
	d.structs("", reflect.ValueOf(*old), reflect.ValueOf(*new))
	for path := range restartOnly {
		d.restart(path)
	}
	return d.changes
}

// AsRunning returns next as it can be in force where running is: with the settings of
// running that only a restart changes. Both share what they point to with the result.
// Error: other machines reach the listener that stays, and next has no clients.
func AsRunning(running, next *Config) (*Config, error) {
	c := *next
	c.Server.Listen, c.Server.State, c.Server.StateDir, c.Server.TLS = running.Server.Listen, running.Server.State, running.Server.StateDir, running.Server.TLS
	l, was := &c.Server.Limits, running.Server.Limits
	l.HeaderBytes, l.HeaderTime, l.StreamsPerConnection, l.IdleConnection = was.HeaderBytes, was.HeaderTime, was.StreamsPerConnection, was.IdleConnection
	c.Admin, c.Metrics, c.Tracing = running.Admin, running.Metrics, running.Tracing
	c.Logging.Format = running.Logging.Format
	if !isLoopback(hostOf(c.Server.Listen)) && len(c.Clients) == 0 {
		return nil, fmt.Errorf("clients: server.listen is %s until the relay is restarted, and without clients other machines could spend your keys; "+
			"keep the clients until then, or restart the relay", c.Server.Listen)
	}
	return &c, nil
}

type differ struct{ changes []Change }

// restart marks the changes at path and below.
func (d *differ) restart(path string) {
	for i := range d.changes {
		if rest, ok := strings.CutPrefix(d.changes[i].Path, path); ok && (rest == "" || rest[0] == '.') {
			d.changes[i].Restart = true
		}
	}
}

func (d *differ) add(path, from, to string) {
	d.changes = append(d.changes, Change{Path: path, From: from, To: to})
}

func (d *differ) structs(path string, old, new reflect.Value) {
	fields, names := fieldsOf(old.Type())
	for _, name := range names {
		d.values(join(path, name), old.FieldByIndex(fields[name]), new.FieldByIndex(fields[name]))
	}
}

func (d *differ) values(path string, old, new reflect.Value) {
	switch {
	case old.Type() == secretType:
		if old.Interface().(secret.Value).Reveal() != new.Interface().(secret.Value).Reveal() {
			d.add(path, shown(old), shown(new))
		}
	case old.Kind() == reflect.Struct:
		d.structs(path, old, new)
	case old.Kind() == reflect.Map:
		d.tables(path, old, new)
	case old.Kind() == reflect.Slice && old.Type().Elem().Kind() == reflect.Struct:
		d.lists(path, old, new)
	default:
		if from, to := shown(old), shown(new); from != to {
			d.add(path, from, to)
		}
	}
}

func (d *differ) tables(path string, old, new reflect.Value) {
	names := map[string]bool{}
	for _, key := range append(old.MapKeys(), new.MapKeys()...) {
		names[key.String()] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		at, key := path+"."+name, reflect.ValueOf(name)
		d.entries(at, old.MapIndex(key), new.MapIndex(key))
	}
}

// lists compares the entries of a list that are the same by identity, which is their
// place in the list where they have no name.
func (d *differ) lists(path string, old, new reflect.Value) {
	before, after := identities(old), identities(new)
	for i, id := range before {
		entry := reflect.Value{}
		if j := slices.Index(after, id); j >= 0 {
			entry = new.Index(j)
		}
		d.entries(path+"["+id+"]", old.Index(i), entry)
	}
	for j, id := range after {
		if !slices.Contains(before, id) {
			d.entries(path+"["+id+"]", reflect.Value{}, new.Index(j))
		}
	}
	was := slices.DeleteFunc(slices.Clone(before), func(id string) bool { return !slices.Contains(after, id) })
	is := slices.DeleteFunc(slices.Clone(after), func(id string) bool { return !slices.Contains(before, id) })
	if !slices.Equal(was, is) && old.Type() != reflect.TypeFor[[]auth.ClientConfig]() {
		d.add(path, "in order "+strings.Join(before, ", "), "in order "+strings.Join(after, ", "))
	}
}

// entries compares two entries; one that is not there is the zero Value.
func (d *differ) entries(path string, old, new reflect.Value) {
	if old.IsValid() && new.IsValid() {
		d.values(path, old, new)
		return
	}
	d.add(path, whole(old), whole(new))
}

func whole(v reflect.Value) string {
	switch {
	case !v.IsValid():
		return "absent"
	case v.Kind() == reflect.Struct && v.Type() != secretType:
		return "present"
	}
	return shown(v)
}

func identities(list reflect.Value) []string {
	ids := make([]string, list.Len())
	for i := range ids {
		switch entry := list.Index(i).Interface().(type) {
		case Provider:
			ids[i] = entry.Name
		case keypool.KeyConfig:
			ids[i] = entry.ID()
		case auth.ClientConfig:
			ids[i] = entry.Name
		default:
			ids[i] = fmt.Sprint(i)
		}
	}
	return ids
}

// shown is a value for reading.
func shown(v reflect.Value) string {
	switch {
	case v.Type() == secretType && v.Interface().(secret.Value).IsZero():
		return `""`
	case v.Kind() == reflect.Pointer && v.IsNil():
		return "default"
	case v.Kind() == reflect.Pointer:
		return shown(v.Elem())
	case v.Kind() == reflect.Slice:
		var all []string
		for i := range v.Len() {
			all = append(all, shown(v.Index(i)))
		}
		return "[" + strings.Join(all, ", ") + "]"
	case v.Kind() == reflect.String && v.String() == "":
		return `""`
	}
	return fmt.Sprint(v.Interface())
}
