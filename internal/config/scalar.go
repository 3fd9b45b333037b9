package config

import (
	"errors"
	"reflect"
	"strconv"
	"strings"
	"time"

	"cc-relay/internal/secret"
)

var (
	secretType   = reflect.TypeFor[secret.Value]()
	durationType = reflect.TypeFor[time.Duration]()
)

var errNotNumber = errors.New("not a number; write one such as 3 or 0.25")

func (d *decoder) scalar(path string, n *node, dst reflect.Value) {
	if n.kind != nodeScalar {
		d.addf(path, "must be a single value, not a list or a mapping")
		return
	}
	secret := dst.Type() == secretType
	got, err := d.expand(n.text, secret)
	if secret {
		d.names = append(d.names, got.names...)
		d.files = append(d.files, got.files...)
		if got.literal {
			d.literals = append(d.literals, path)
		}
	}
	if err == nil {
		err = set(dst, got.value)
	}
	if err != nil {
		d.add(path, err)
	}
}

// set reads text into dst. Its errors do not repeat text, which may be a secret
// in the wrong place.
func set(dst reflect.Value, text string) error {
	switch {
	case dst.Type() == secretType:
		dst.Set(reflect.ValueOf(secret.New(text)))
	case dst.Type() == durationType:
		v, err := time.ParseDuration(text)
		if err != nil {
			return errors.New("not a duration; write a number with a unit, such as 30s or 10m")
		}
		dst.SetInt(int64(v))
	case dst.CanInt():
		v, err := strconv.ParseInt(text, 10, dst.Type().Bits())
		if errors.Is(err, strconv.ErrRange) {
			return errors.New("too large a number")
		}
		if err != nil {
			return errors.New("not a whole number; write digits only")
		}
		dst.SetInt(v)
	case dst.CanFloat():
		if strings.Trim(text, "0123456789.eE+-") != "" { // as in Inf and 0x1p-2
			return errNotNumber
		}
		v, err := strconv.ParseFloat(text, dst.Type().Bits())
		if errors.Is(err, strconv.ErrRange) {
			return errors.New("too large a number")
		}
		if err != nil {
			return errNotNumber
		}
		dst.SetFloat(v)
	case dst.Kind() == reflect.Bool:
		v := strings.ToLower(text)
		if v != "true" && v != "false" {
			return errors.New("write true or false")
		}
		dst.SetBool(v == "true")
	default:
		dst.SetString(text)
	}
	return nil
}
