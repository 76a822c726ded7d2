// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
)

// FieldError is one wrong value.
type FieldError struct {
	// Field is the path of the field, such as "storage.highWatermark".
	Field string
	// Message says what to write instead.
	Message string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Message }

// Validate returns nil or all wrong values, as joined errors of type *FieldError.
func (c Config) Validate() error {
	var errs []error
	check := func(field string, err error) {
		if err != nil {
			errs = append(errs, &FieldError{Field: field, Message: err.Error()})
		}
	}
	check("upstream.host", validateHost(c.Upstream.Host))
	check("upstream.remoteURL", validateRemoteURL(c.Upstream.RemoteURL))
	check("listen.address", validateAddress(c.Listen.Address))
	switch {
	case c.Listen.TLS.CertFile == "" && c.Listen.TLS.KeyFile != "":
		check("listen.tls.certFile", errors.New("must be set, because keyFile is"))
	case c.Listen.TLS.CertFile != "" && c.Listen.TLS.KeyFile == "":
		check("listen.tls.keyFile", errors.New("must be set, because certFile is"))
	}
	check("debug.address", validateAddress(c.Debug.Address))
	if !filepath.IsAbs(c.Storage.Root) {
		check("storage.root", fmt.Errorf("%q must be an absolute path", c.Storage.Root))
	}
	errs = append(errs, c.ValidatePolicy())
	check("tags.revalidateAfter", validateDuration(c.Tags.RevalidateAfter))
	return errors.Join(errs...)
}

// ValidatePolicy is the part of Validate about what is deleted: watermarks and TTL.
func (c Config) ValidatePolicy() error {
	var errs []error
	if c.Storage.HighWatermark < 1 || c.Storage.HighWatermark > 100 {
		errs = append(errs, &FieldError{"storage.highWatermark", fmt.Sprintf("%d must be a percentage from 1 to 100", c.Storage.HighWatermark)})
	}
	if c.Storage.LowWatermark < 0 || c.Storage.LowWatermark >= c.Storage.HighWatermark {
		errs = append(errs, &FieldError{"storage.lowWatermark", fmt.Sprintf("%d must be a percentage below highWatermark, which is %d",
			c.Storage.LowWatermark, c.Storage.HighWatermark)})
	}
	if err := validateDuration(c.GarbageCollection.TTL); err != nil {
		errs = append(errs, &FieldError{"garbageCollection.ttl", err.Error()})
	}
	return errors.Join(errs...)
}

func validateHost(host string) error {
	if host == "" {
		return errors.New("must be set to the registry of the image references, such as docker.io")
	}
	u, err := url.Parse("//" + host)
	if err != nil || u.Host != host || u.Hostname() == "" || strings.HasSuffix(host, ":") {
		return fmt.Errorf("%q must be a host name with an optional port and no scheme, such as docker.io", host)
	}
	return nil
}

func validateRemoteURL(remoteURL string) error {
	if remoteURL == "" {
		return errors.New("must be set to the URL of the registry, such as https://registry-1.docker.io")
	}
	u, err := url.Parse(remoteURL)
	switch {
	// The value is left out of the messages: it may carry a password.
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "":
		return errors.New("must be an http or https URL with a host, such as https://registry-1.docker.io")
	case u.User != nil:
		return errors.New("must not contain credentials; put them into the files of upstream.credentialsDir")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.New("must end after host and port")
	}
	return nil
}

func validateAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q must be host:port, such as \":5000\"", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q must end with a port from 0 to 65535", address)
	}
	return nil
}

func validateDuration(d Duration) error {
	if d < 0 {
		return errors.New("must not be negative")
	}
	return nil
}
