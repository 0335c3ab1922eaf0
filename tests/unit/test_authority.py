"""Which certificates are made anew, and when: pure decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509

from driver.controller import authority
from driver.controller.authority import AUTHORITY_LIFE, AUTHORITY_RENEWAL, CLIENT, LIFE, RENEWAL, SERVER, SETTLING
from driver.rpc.tls import CONTROLLER_NAME, NODE_NAME, Certificates

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MOMENT = timedelta(minutes=1)


def test_a_new_authority_signs_only_when_everybody_trusts_it() -> None:
    first = authority.renewed([], NOW)
    assert authority.signing(first, NOW) is first[0]
    assert authority.renewed(first, NOW + AUTHORITY_LIFE - AUTHORITY_RENEWAL - MOMENT) == first
    later = NOW + AUTHORITY_LIFE - AUTHORITY_RENEWAL + MOMENT
    both = authority.renewed(first, later)
    assert len(both) == 2 and both[0] is first[0]
    assert authority.signing(both, later + SETTLING - MOMENT) is both[0]
    assert authority.signing(both, later + SETTLING) is both[1]
    assert authority.renewed(both, NOW + AUTHORITY_LIFE) == both[1:]


def test_authorities_come_back_and_strange_ones_do_not() -> None:
    both = [authority.make_authority(NOW), authority.make_authority(NOW)]
    trusted, keys = authority.dump(both)
    assert [item.certificate for item in authority.load(trusted, keys)] == [item.certificate for item in both]
    assert authority.load(trusted, b"") == []
    assert authority.load(b"nonsense", keys) == []
    swapped = authority.dump(both[::-1])[1]
    assert authority.load(trusted, swapped) == []


def test_a_certificate_is_good_for_its_name_its_authority_and_its_time() -> None:
    ours, other = authority.make_authority(NOW), authority.make_authority(NOW)
    certificate, key = authority.issue(ours, NODE_NAME, SERVER, NOW)
    held = Certificates(authority.dump([ours])[0], certificate, key)
    assert authority.is_good(held, ours, NODE_NAME, NOW)
    assert not authority.is_good(held, ours, CONTROLLER_NAME, NOW)
    assert not authority.is_good(held, other, NODE_NAME, NOW)
    assert authority.is_good(held, ours, NODE_NAME, NOW + LIFE - RENEWAL - MOMENT)
    assert not authority.is_good(held, ours, NODE_NAME, NOW + LIFE - RENEWAL)
    assert not authority.is_good(Certificates(held.ca, held.certificate, b"no key"), ours, NODE_NAME, NOW)


def test_usages_are_distinct() -> None:
    ours = authority.make_authority(NOW)
    for usage in (SERVER, CLIENT):
        shown = x509.load_pem_x509_certificate(authority.issue(ours, NODE_NAME, usage, NOW)[0])
        assert list(shown.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
        assert not shown.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
