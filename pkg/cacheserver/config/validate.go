// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/registry-cache/extension/pkg/contract"
)

// FieldError is one wrong value.
type FieldError struct {
	// Field is the path of the field, such as "storage.highWatermark".
	Field string
	// Message describes the problem and the remedy.
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
	check("upstream.host", address(c.Upstream.Host, "must be set to the registry of the image references, such as docker.io", contract.ParseHost))
	check("upstream.remoteURL", address(c.Upstream.RemoteURL, "must be set to the URL of the registry, such as https://registry-1.docker.io", contract.ParseRemoteURL))
	if timeout := time.Duration(c.Upstream.HeaderTimeout); timeout != 0 {
		if err := contract.CheckHeaderTimeout(timeout); err != nil {
			check("upstream.headerTimeout", fmt.Errorf("%s %w", timeout, err))
		}
	}
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
	if c.Storage.Size < 0 {
		check("storage.size", errors.New("must not be negative"))
	}
	errs = append(errs, c.ValidateLimits())
	check("tags.revalidateAfter", validateDuration(c.Tags.RevalidateAfter))
	check("tags.maxStale", contract.CheckMaxStale(time.Duration(c.Tags.MaxStale)))
	return errors.Join(errs...)
}

// ValidateLimits is the part of Validate for Limits: watermarks and TTL.
func (c Config) ValidateLimits() error {
	var errs []error
	check := func(field string, value any, err error) {
		if err != nil {
			errs = append(errs, &FieldError{field, fmt.Sprintf("%v %v", value, err)})
		}
	}
	high, low, ttl := c.Storage.HighWatermark, c.Storage.LowWatermark, time.Duration(c.GarbageCollection.TTL)
	if err := contract.CheckHighWatermark(high); err != nil {
		check("storage.highWatermark", high, err)
	} else {
		check("storage.lowWatermark", low, contract.CheckLowWatermark(low, high))
	}
	check("garbageCollection.ttl", ttl, contract.CheckTTL(ttl))
	return errors.Join(errs...)
}

// address checks a value by its parser in package contract. A value that may contain a password is left out of the error.
func address[T any](value, unset string, parse func(string) (T, error)) error {
	if value == "" {
		return errors.New(unset)
	}
	_, err := parse(value)
	if failure, ok := errors.AsType[*contract.AddressError](err); ok && !failure.Secret {
		return fmt.Errorf("%q %w", value, err)
	}
	return err
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
